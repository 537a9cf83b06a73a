"""A process that has everything imported, and forks one that converts or changes a data set for each line it reads.

For tests that kill at many moments: starting Python and torch each time would take a hundred times longer than what is
tested. Reads a JSON line, the name of a function of `walloc_data.convert` or `walloc_data.maintain`, its arguments and
its keyword arguments, and answers with the fork's process id; reads an empty line and answers with [exit code, seconds
it ran]. Between the two the process id stays the fork's, ended or not, so that whoever kills it at a moment of their
own never meets another process or none.
"""

import json
import os
import sys
import time

import torch

from walloc_data import convert, maintain
from walloc_data.codec import load_codec

torch.set_num_threads(1)
load_codec()

for line in sys.stdin:
    name, arguments, options = json.loads(line)
    function = getattr(maintain if hasattr(maintain, name) else convert, name)
    child = os.fork()
    if child == 0:
        try:
            function(*arguments, **options)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    started = time.perf_counter()
    print(child, flush=True)
    sys.stdin.readline()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - started]), flush=True)
