#!/usr/bin/env bash
# How dmc-small was made: run from the root of the repository, with the project's environment active.
# The poses datasets come out differently today (see README.md), and the weights with them.
set -euo pipefail
tasks="walker-walk cartpole-swingup cheetah-run reacher-easy finger-spin ball_in_cup-catch"
kinds="wild poses two standard"
data=runs/dmc out=runs/dmc-small

for task in $tasks; do
  collect="perceiver-obs collect --task $task"
  $collect --out $data/$task-wild --seed 1 --render-quality fast --action-repeat planet --policy mixed --episodes 60 --max-steps 125
  $collect --out $data/$task-poses --seed 2 --render-quality fast --action-repeat planet --policy correlated --random-init \
    --episodes 80 --max-steps 100
  $collect --out $data/$task-two --seed 3 --render-quality fast --action-repeat 2 --policy correlated --random-init \
    --episodes 30 --max-steps 100
  $collect --out $data/$task-standard --seed 4 --render-quality standard --action-repeat 2 --policy mixed --random-init \
    --episodes 14 --max-steps 80
done

rollouts=$(for task in $tasks; do for kind in $kinds; do echo $data/$task-$kind; done; done)
perceiver-obs train-tokenizer --data $rollouts --out $out/tokenizer --clip-length 1 --batch-size 32 --steps 2000 \
  --learning-rate 1e-3 --base-channels 24 --code-dim 32 --num-quantizers 4 --num-codes 256
perceiver-obs train-predictor --data $rollouts --tokenizer $out/tokenizer --out $out/model --steps 2300 --batch-size 16 \
  --clip-length 12 --sequence-length 8 --num-latents 16 --num-latent-channels 128 --samples 5 --regression-weight 1 \
  --foreground-weight 1 --learning-rate 1e-3
