# shellcheck shell=bash
# shellcheck disable=SC2034  # Variables are for the scripts that source this.
# Sourced by the launch scripts: what shall run on the machines, as their options describe it.
#
#   complete_job     checks $command, $config, $workdir and $out, sets ${flags[@]}, the command's own
#   complete_slice   besides that they are in a bucket; checks or fills in $name and $logs

command="train" config="" workdir="" out="" slice="" name="" logs=""
flags=()

# What installing and running need, without checkpoints, virtual environments and history.
SOURCE=(README.md pyproject.toml setup.py imagen_video configs launch)

complete_job() {
  case "$command" in
    train | distill)
      require_options config workdir
      [[ -z $out ]] || mistake "--out is for --command sample; $command has --workdir"
      flags=(--config "$config" --workdir "$workdir")
      ;;
    sample)
      require_options out
      [[ -z $workdir ]] || mistake "--workdir is for train and distill; sample has --out"
      flags=(${config:+--config "$config"} --out "$out")
      ;;
    *) mistake "--command '$command' is not train, distill or sample" ;;
  esac
  flags+=(${slice:+--slice "$slice"} --distributed "${rest[@]}")
}

complete_slice() {
  local place="workdir" subject
  complete_job
  [[ $command != sample ]] || place="out"
  if [[ ${!place} != gs://?* ]]; then
    mistake "--$place '${!place}' is not in Cloud Storage (gs://...), where every worker can write" \
      "and what is done outlives the slice"
  fi
  case "$command" in
    train) subject="$(basename "${config%%:*}" .py)" ;;
    distill) subject="$(basename "${config/.py/}")" ;;
    sample) subject="sample" ;;
  esac
  name="${name:-imagen-video-${subject//[_:,.]/-}}"
  # What Google Cloud and xpk both take.
  if [[ ! $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
    mistake "--name '$name' is not of at most 40 lower-case letters, digits and dashes, a letter" \
      "first and no dash last"
  fi
  logs="${logs:-$ROOT/runs/$name}"
}

check_config_is_here() {
  [[ -z $config || ($config == configs/* && -f $ROOT/${config%%:*}) ]] ||
    mistake "--config '$config' is no file of this repository (configs/...)"
}
