#!/usr/bin/env bash
# How dmc-small was made: run from the root of the repository, with the project's environment active.
set -euo pipefail
tasks="walker-walk cartpole-swingup cheetah-run reacher-easy finger-spin ball_in_cup-catch"
data=runs/dmc out=runs/dmc-small

for task in $tasks; do
  collect="perceiver-obs collect --task $task --policy mixed"
  for quality in fast smooth; do
    planet="$collect --render-quality $quality --action-repeat planet"
    $planet --out $data/$task-$quality-wild --seed 1 --episodes 60 --max-steps 125
    $planet --out $data/$task-$quality-starts --seed 11 --random-init --episodes 1400 --max-steps 15
  done
  $collect --out $data/$task-standard --seed 4 --render-quality standard --action-repeat 2 --random-init \
    --episodes 14 --max-steps 80
done

# Twice named counts twice: a fifth of the clips are of standard rendering.
mixed() { for task in $tasks; do for kind in $1-starts $1-starts $1-wild $1-wild standard; do echo $data/$task-$kind; done; done; }
# The tokenizer is older than the rest: trained on fast frames, learning motion by a head for each of three horizons, as
# the version of commit c61faab does, and in two parts, 8,000 steps and then raised to 16,000.
perceiver-obs train-tokenizer --data $(mixed fast) --out $out/tokenizer --steps 8000
perceiver-obs train-tokenizer --data $(mixed fast) --out $out/tokenizer --steps 16000
perceiver-obs train-predictor --data $(mixed smooth) --tokenizer $out/tokenizer --out $out/model --samples 8 --steps 13000

python -c "from perceiver_obs import CausalPerceiverIO
CausalPerceiverIO.from_pretrained('$out/model').save_pretrained('$out/half', half_precision=True)"
