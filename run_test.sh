#!/usr/bin/env bash
# Test: bash run_test.sh [checkpoint] [options of test.py]. Without a checkpoint, it tests the best model of the newest run.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$(bash "$repository/run.sh" --python report)
if [[ " $* " == *" --load_pt_file"[\ =]* ]]; then
  exec "$python" "$repository/test.py" "$@"
elif [[ $# -gt 0 && $1 != -* ]]; then
  checkpoint=$1
  shift
else
  checkpoint=$(ls -t runs/*/best.pt 2>/dev/null | head -n 1 || true)
  if [[ -z $checkpoint ]]; then
    echo "error: there is no runs/*/best.pt yet; train one with: bash run.sh" >&2
    exit 2
  fi
  echo "testing $checkpoint"
fi
exec "$python" "$repository/test.py" --load_pt_file "$checkpoint" "$@"
