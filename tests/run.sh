#!/usr/bin/env bash
# The checks and the fast tests, on all cores: bash tests/run.sh [words of pytest], for instance -m slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash run.sh --python report export search gpu cameras test)
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest -n auto --dist worksteal "$@"
