"""A process that has everything imported, and forks one that changes a data set for each line it reads.

For tests that kill changes at many moments; see tests/convert/warm.py, whose protocol it has. A line is a JSON list:
the name of a function of `walloc_data.maintain`, its arguments, its keyword arguments.
"""

import json
import os
import sys
import time

import torch

from walloc_data import maintain
from walloc_data.codec import load_codec

torch.set_num_threads(1)
load_codec()

for line in sys.stdin:
    name, arguments, options = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            getattr(maintain, name)(*arguments, **options)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    started = time.perf_counter()
    print(child, flush=True)
    sys.stdin.readline()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - started]), flush=True)
