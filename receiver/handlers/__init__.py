"""The built-in handlers. A checkout keeps them in the top-level `handlers/`; the wheel puts them in this package."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "handlers").is_dir():
    __path__.append(str(_checkout / "handlers"))
