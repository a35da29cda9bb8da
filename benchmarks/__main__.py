"""`make bench`: every benchmark of this folder in turn, each a table of ratios taken side by side."""

import subprocess
import sys
from pathlib import Path


for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"\n{path.stem}\n{'=' * len(path.stem)}", flush=True)
    subprocess.run([sys.executable, str(path), *sys.argv[1:]], check=False)
