#!/usr/bin/env bash
# What the training image runs on Vertex AI, in the project's folder. Told by the environment:
#   BUCKET, JOB, GPUS (of this node), SOURCE, RAW, MODELS, BUDGET, SEEDS, PARAMS; CLUSTER_SPEC comes from Vertex AI.
# One device: the whole pipeline, from data to report and exported model. More: torchrun trains on the packed set; afterwards
# the same job on one device finds those trainings finished, and evaluates them.
# Checkpoints live in the bucket, so that a restarted job goes on exactly. Cloud Storage renames a file by copying and deleting: the new
# name appears whole or not at all, and a temporary file that a killed job left is removed by the next.
set -euo pipefail -f
: "${BUCKET:?}" "${JOB:?}" "${SOURCE:?}" "${RAW:?}" "${MODELS:?}" "${BUDGET:?}" "${SEEDS:?}"
here=$(dirname "$0")
mount=${GCS_MOUNT:-/gcs}/$BUCKET
run=$mount/runs/$JOB
devices=$(( ${GPUS:-0} > 0 ? GPUS : 1 ))

# run a command, hand SIGTERM on to it, and wait until it has saved
attend() {
  "$@" & local child=$! code=0
  trap 'kill -TERM $child' TERM
  wait $child || code=$?
  while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
  trap - TERM
  return $code
}

# a mount may show only folders that were made as such
mkdir -p "$run/runs" "$mount/data/raw" "$mount/data/processed" || { echo "$run cannot be made: is the bucket mounted at $mount, and may this account write to it?" >&2; exit 1; }
if [ -e "$run/params.yaml" ]; then cp -r "$run/params.yaml" "$run/params" .; fi
read -ra more <<<"${PARAMS:-}"
python "$here/params.py" "source=$SOURCE" "raw=$RAW" "models=[$MODELS]" "budget=$BUDGET" "seeds=[$SEEDS]" ${more[@]+"${more[@]}"}
cluster=$(python "$here/cluster.py")
read -r nodes rank address port <<<"$cluster"

if [ $((nodes * devices)) -gt 1 ]; then
  [ -e "$mount/data/processed/manifest.json" ] || { echo "no packed set in gs://$BUCKET/data/processed: make gcp-data sends it" >&2; exit 1; }
  mkdir -p data/processed
  cp -r "$mount/data/processed/." data/processed/
  options=$(python "$here/params.py" --options)
  mapfile -t options <<<"$options"
  for model in ${MODELS//,/ }; do for seed in ${SEEDS//,/ }; do
    attend torchrun --nnodes "$nodes" --node-rank "$rank" --master-addr "$address" --master-port "$port" --nproc-per-node "$devices" \
      -m bcss_nb.training.train --model "$model" --seed "$seed" --data "$PWD/data/processed" --out "$run/runs/$model/$seed" "${options[@]}"
  done; done
  if [ "$rank" = 0 ]; then cp -r params.yaml params "$run/"; fi
  exit
fi

dvc remote add --local --force --default bucket "gs://$BUCKET/dvc"
mkdir -p data/raw reports exports
if [ -e "$mount/data/dvc.lock" ]; then cp "$mount/data/dvc.lock" .; fi
cp -r "$mount/data/raw/." data/raw/
raws=$(find data/raw -maxdepth 1 -name '*.dvc')
dvc pull --allow-missing sample prepare $raws
rm -rf runs
ln -s "$run/runs" runs
dvc repro robustness leakage report export
dvc push
cp -r reports exports params.yaml params dvc.lock "$run/"
