#!/usr/bin/env bash
# Compiles every recipe of configs/recipes.py for its TPU slice, without a TPU, and prints the table
# of what the compiler says. Minutes each; what DIR has already is kept, so it can be stopped.
#
#   bash launch/compile_all.sh DIR [FLAGS of imagen-video compile]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

case "${1:-}" in
  --help | -h) print_help && exit ;;
  "" | -*) mistake "the first argument must be a folder for the reports" ;;
esac
reports="$1"
shift

install_into_venv "[test]"
mkdir -p "$reports"
"$VENV/bin/imagen-video" recipes | while read -r stage program slice; do
  report="$reports/$stage-$program-${slice//:/-}.json"
  [[ -s $report ]] && continue
  echo "== $stage $program on $slice" >&2
  case $program in
    guide | halve) config="configs/distill.py:$stage" ;;
    *) config="configs/stages/$stage.py" ;;
  esac
  code=0
  "$VENV/bin/imagen-video" compile --config "$config" --program "$program" \
    --slice "$slice" --json "$@" > "$report.part" < /dev/null || code=$?
  # 1 with a report: it does not fit, which is a result.
  if ((code > 1)) || [[ ! -s $report.part ]]; then
    echo "error: no report of $stage $program on $slice" >&2
    exit "$((code > 0 ? code : 1))"
  fi
  mv "$report.part" "$report"
done
"$VENV/bin/imagen-video" recipes --reports "$reports"
