# shellcheck shell=bash
# shellcheck disable=SC2034  # Variables are for the scripts that source this.
# Sourced by the launch scripts: a training, as their options describe it.
#
#   complete_training   checks $config, $workdir and $name, fills in $name and $logs, sets ${flags[@]}

config="" workdir="" slice="" name="" logs=""
flags=()

# What installing and training need, without checkpoints, virtual environments and history.
SOURCE=(README.md pyproject.toml setup.py imagen_video configs launch)

complete_training() {
  local stage
  require_options config workdir
  if [[ $workdir != gs://?* ]]; then
    mistake "--workdir '$workdir' is not in Cloud Storage (gs://...), where every worker can write" \
      "and a checkpoint outlives the slice"
  fi
  stage="$(basename "${config%%:*}" .py)"
  name="${name:-imagen-video-${stage//_/-}}"
  # What Google Cloud and xpk both take.
  if [[ ! $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
    mistake "--name '$name' is not of at most 40 lower-case letters, digits and dashes, a letter" \
      "first and no dash last"
  fi
  logs="${logs:-$ROOT/runs/$name}"
  flags=(--config "$config" --workdir "$workdir" --slice "$slice" --distributed "${rest[@]}")
}

check_config_is_here() {
  [[ $config == configs/* && -f $ROOT/${config%%:*} ]] ||
    mistake "--config '$config' is no file of this repository (configs/...)"
}
