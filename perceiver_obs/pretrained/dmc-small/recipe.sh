#!/usr/bin/env bash
# How dmc-small was made: run from the root of the repository, with the project's environment active.
set -euo pipefail
tasks="walker-walk cartpole-swingup cheetah-run reacher-easy finger-spin ball_in_cup-catch"
data=runs/dmc out=runs/dmc-small

for task in $tasks; do
  collect="perceiver-obs collect --task $task"
  $collect --out $data/$task-wild --seed 1 --render-quality fast --action-repeat planet --policy mixed --episodes 60 --max-steps 125
  $collect --out $data/$task-starts --seed 11 --render-quality fast --action-repeat planet --policy mixed --random-init \
    --episodes 1400 --max-steps 15
  $collect --out $data/$task-two --seed 3 --render-quality fast --action-repeat 2 --policy correlated --random-init \
    --episodes 30 --max-steps 100
  $collect --out $data/$task-standard --seed 4 --render-quality standard --action-repeat 2 --policy mixed --random-init \
    --episodes 14 --max-steps 80
done

every=$(for task in $tasks; do for kind in wild starts two standard; do echo $data/$task-$kind; done; done)
perceiver-obs train-tokenizer --data $every --out $out/tokenizer --clip-length 1 --batch-size 16 --steps 3000 \
  --learning-rate 1.5e-3 --base-channels 24 --stem-stride 4 --code-dim 32 --num-quantizers 4 --num-codes 256

# Twice named counts twice: a fifth of the clips are of standard rendering.
mixed=$(for task in $tasks; do for kind in starts starts wild wild standard; do echo $data/$task-$kind; done; done)
perceiver-obs train-predictor --data $mixed --tokenizer $out/tokenizer --out $out/model --steps 5500 \
  --batch-size 16 --clip-length 12 --sequence-length 6 --inputs-per-frame 8 --token-time-kernel 1 --num-latents 8 \
  --num-latent-channels 128 --num-self-attention-layers 1 --outline-weight 1 --contrastive-weight 0.3 \
  --cross-entropy-weight 0.1 --token-predictions 8 --samples 5 --learning-rate 1e-3 --warmup-steps 100

python -c "from perceiver_obs import CausalPerceiverIO
CausalPerceiverIO.from_pretrained('$out/model').save_pretrained('$out/half', half_precision=True)"
