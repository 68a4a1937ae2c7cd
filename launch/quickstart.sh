#!/usr/bin/env bash
# From a sentence to a video, on a machine that has only Python:
#
#   bash launch/quickstart.sh "a large red circle moving left on a white background" [FLAGS]
#
# Makes .venv and installs the project on the first run, then samples the built-in cascade, by its
# distilled students. FLAGS go to `imagen-video sample` (see `imagen-video sample --help`); any that
# says which weights or how to sample leaves the students to --distilled. The video is written under
# samples/ in the current folder, unless --out says otherwise.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [[ -z ${1:-} || $1 == -* ]]; then
  echo "usage: bash launch/quickstart.sh \"PROMPT\" [FLAGS of imagen-video sample]" >&2
  exit 2
fi
prompt="$1"
shift

out="" before="" students=--distilled
for argument in "$@"; do
  case "$argument" in --out=* | -out=*) out="${argument#*=}" ;; esac
  case "$before" in --out | -out) out="$argument" ;; esac
  flag="${argument%%=*}"
  [[ $flag == --* ]] || flag="-$flag"
  case "$flag" in
    --weights | --config | --steps | --guidance | --thresholding)
      students=--nodistilled
      ;;
  esac
  before="$argument"
done
if [[ -z $out ]]; then
  # The prompt as a folder name; where that is not all of the prompt, with a checksum of it.
  name="$(printf '%s' "$prompt" | LC_ALL=C tr -cs 'A-Za-z0-9' - | cut -c -80)"
  if [[ ${name//-/ } != "$prompt" ]]; then
    name="${name%-}-$(printf '%s' "$prompt" | cksum | cut -d ' ' -f 1)"
  fi
  out="samples/${name#-}"
  set -- "$@" "--out=$out"
fi

install_into_venv ""
"$VENV/bin/imagen-video" sample "--prompt=$prompt" "$students" "$@"

for video in "$out"/*.mp4; do
  [[ ! -e $video ]] || echo "video: $video"
done
