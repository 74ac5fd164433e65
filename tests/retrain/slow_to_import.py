"""A program of which nothing but the imports ever runs."""

import sys
import time

sys.stdout.write("importing\n")
sys.stdout.flush()
time.sleep(600)
