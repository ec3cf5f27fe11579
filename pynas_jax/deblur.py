"""The command `restore` by another name, as the network in the box deblurs.

  python -m pynas_jax.deblur -i photo.jpg holiday/ clip.mp4 -o results
"""

from __future__ import annotations

import sys

from pynas_jax.restore import main

if __name__ == '__main__':
  sys.exit(main())
