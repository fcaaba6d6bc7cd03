"""A wheel builds, carries its type marker and nothing else, and works where only it is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import deltaw as dw, torch, pathlib
assert pathlib.Path(dw.__file__).is_relative_to(SITE), dw.__file__
net = torch.nn.Sequential(torch.nn.Linear(4, 4))
print(dw.attach(net, dw.LoRAConfig(rank=2)))
dw.save(net, "adapter"); dw.detach(net)
print(dw.load(net, "adapter"))
"""


@pytest.mark.slow
def test_wheel_builds_and_works_alone(tmp_path: Path) -> None:
    pytest.importorskip("build")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("deltaw-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "deltaw/py.typed" in names
    assert {"deltaw/paper/tables/table18.toml", "deltaw/paper/tables/errata.toml"} <= set(names)
    assert all(name.startswith(("deltaw/", "deltaw-")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    code = f"import sys; SITE = {str(site)!r}; sys.path.insert(0, SITE)\n" + USE
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    assert "applied to 1/1 modules" in used.stdout
