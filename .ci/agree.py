"""Compare two restored pictures: `python .ci/agree.py ONE OTHER [FLOOR]` exits with 1 below FLOOR dB (default 60)."""

import sys

import numpy as np
from PIL import Image

one, other = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in sys.argv[1:3])
floor = float(sys.argv[3]) if sys.argv[3:] else 60.0
error = np.abs(one - other)
psnr = 10 * np.log10(255**2 / max(float((error**2).mean()), 1e-12))  # equal pictures: 168 dB
print(f"{psnr:.1f} dB (floor {floor:.0f}), at most {error.max():.0f} of 255 levels, {(error > 0).mean():.2%} differ")
sys.exit(int(psnr < floor))
