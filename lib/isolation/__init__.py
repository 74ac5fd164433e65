"""Child processes that read untrusted files: their limits, their messages, and the pool that uses them.

    pool = readers()
    result, array = pool.run("lib.imaging.reader_tasks:ct", {...}, path=path, case=image_id)

A *template process* imports the readers once and never opens a file. For each file it forks a *reader*, which
gives up its rights (`confinement`), reads that one file, and ends. So a reader starts within milliseconds, and
never holds anything of another file in its memory. See docs/adr/0028-reader-processes.md.
"""
