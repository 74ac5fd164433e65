"""Helpers of the programs: console, shared options, benchmarks, a server process, the simulation."""
