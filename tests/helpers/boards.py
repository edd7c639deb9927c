"""The files of boards, as far as they tell what a machine is. From public listings of such files; none was at hand."""

from pathlib import Path

MEMORY = b"MemTotal:        7802864 kB\nMemFree: 1 kB\nMemAvailable: 5000000 kB\nSwapTotal:       3901424 kB\n"
PLACES = {
    "model": "proc/device-tree/model",
    "compatible": "proc/device-tree/compatible",
    "base/model": "sys/firmware/devicetree/base/model",
    "base/compatible": "sys/firmware/devicetree/base/compatible",
    "release": "etc/nv_tegra_release",
    "release/folder": "etc/nv_tegra_release/file",
    "status": "var/lib/nvpmodel/status",
    "modes": "etc/nvpmodel.conf",
}
MODES = (
    b"< PARAM TYPE=FILE NAME=CPU_ONLINE >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    b"< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
)


def release(major: int, revision: str) -> bytes:
    text = f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    return text.encode() + b"# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"


BOARDS = {
    "Orin Nano, JetPack 6.2": {
        "model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "compatible": b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "release": release(36, "4.3"),
        "status": b"pmode:0002 fmode:fanNull\n",
        "modes": MODES,
    },
    "Orin NX, JetPack 7.2": {
        "model": b"NVIDIA Orin NX Developer Kit\0",
        "compatible": b"nvidia,p3509-0000+p3767-0000\0nvidia,tegra234\0",
        "release": release(39, "0.0"),
    },
    "another maker's carrier, no release file": {
        "model": b"Antmicro Job\0",
        "compatible": b"antmicro,job\0nvidia,p3767-0000\0nvidia,tegra234\0",
    },
    "AGX Thor, JetPack 7": {
        "model": b"NVIDIA Jetson AGX Thor Developer Kit\0",
        "compatible": b"nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
        "release": release(38, "2.0"),
    },
    "a container on an Orin": {"release": release(36, "4.3")},
    "AGX Xavier, JetPack 5": {
        "model": b"Jetson-AGX\0",
        "compatible": b"nvidia,p2972-0000\0nvidia,tegra194\0",
        "release": release(35, "6.1"),
    },
}


def machine(root: Path, **files: bytes) -> Path:
    """A root folder with the files of a machine."""
    for name, data in {**files, "memory": MEMORY}.items():
        path = root / PLACES.get(name, "proc/meminfo")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
