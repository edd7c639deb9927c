"""The default system: a small DifFace of our own at 256x256. `README.md` beside this file is its model card."""
