"""A report of so many pages, assessed from its text, in this process: seconds, and most memory it took."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from eagleray.pipelines.assessing.documents import DocumentAssessor
from eagleray.pipelines.bundle import load_bundle

TOKENS = 600
"""Of a page."""

bundle = load_bundle(Path(sys.argv[1]), threads=2)
assessor, pages, text = DocumentAssessor(bundle), int(sys.argv[2]), Path(sys.argv[3]).read_text()
each = len(bundle.tokenizer.encode(text).ids)
report = " ".join([text] * -(-pages * TOKENS // each))
assessor.assess(text)
begun = time.perf_counter()
found = assessor.assess(report)
seconds = time.perf_counter() - begun
print(
    json.dumps(
        {
            "seconds": seconds,
            "tokens": found.tokens,  # pyright: ignore[reportAttributeAccessIssue]
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
