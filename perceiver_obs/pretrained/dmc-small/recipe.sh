#!/usr/bin/env bash
# How dmc-small was made: run from the root of the repository, with the project's environment active.
set -euo pipefail
tasks="walker-walk cartpole-swingup cheetah-run reacher-easy finger-spin ball_in_cup-catch"
data=runs/dmc out=runs/dmc-small

# Exploration.
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

# Sampling weights; those of a directory that is named again add up.
mixed() { for task in $tasks; do for kind in $1-starts=2 $1-wild=2 standard; do echo $data/$task-$kind; done; done; }
# The tokenizer is older than the rest: trained on fast frames, learning motion by a head for each of three horizons, as
# the version of commit c61faab does, and in two parts, 8,000 steps and then raised to 16,000.
perceiver-obs train-tokenizer --data $(mixed fast) --out $out/tokenizer --steps 8000
perceiver-obs train-tokenizer --data $(mixed fast) --out $out/tokenizer --steps 16000
# A first Perceiver, that of commit aa4fe6b, which had no rewards.
perceiver-obs train-predictor --data $(mixed smooth) --tokenizer $out/tokenizer --out $out/first --samples 8 --steps 13000 \
  --reward-weight 0
python -c "from perceiver_obs import CausalPerceiverIO
CausalPerceiverIO.from_pretrained('$out/first').save_pretrained('$out/first-half', half_precision=True)"

# What policies meet that learn on its contexts. (The finger's run was begun with 30,000 and stopped after 20 episodes.)
for task in $tasks; do
  frames=30000
  if [ $task = finger-spin ]; then frames=20000; fi
  perceiver-obs train-policy --task $task --model $out/first-half --action-repeat planet --render-quality smooth \
    --algorithm CrossQ --learning-rate 1e-3 --hyperparameters ent_coef auto_0.1 --total-frames $frames \
    --eval-every $frames --eval-episodes 2 --out runs/met/$task --record $data/$task-smooth-met
done

# The Perceiver goes on with these, and with the rewards, whose error was squared in the version of commit ce331f8.
# Policies' episodes count twice: those met, and a second kind where there is one.
with_policies() { for task in $tasks; do \
  second=$1; if [ ! -d $data/$task-smooth-$second ]; then second=met; fi; \
  for kind in smooth-starts=2 smooth-wild smooth-met smooth-$second standard; do echo $data/$task-$kind; done; done; }
perceiver-obs train-predictor --data $(with_policies met) --begin-with $out/first-half --out $out/second --samples 8 \
  --steps 10000 --learning-rate 5e-4
python -c "from perceiver_obs import CausalPerceiverIO
CausalPerceiverIO.from_pretrained('$out/second').save_pretrained('$out/second-half', half_precision=True)"

# Episodes of policies that learned for 100,000 control steps each on contexts of this one that adapted to them, actions
# sampled. (Played with other seeds by throw-away code, before `evaluate` could record.)
learned() {
  data_of_task="$data/$1-smooth-starts $data/$1-smooth-wild $data/$1-smooth-met"
  perceiver-obs benchmark dmc100k --methods adapted --tasks $1 --seeds 0 --model $out/second-half --backend onnx \
    --data $data_of_task --out runs/dmc100k --results runs/dmc100k/results.json --docs runs/dmc100k/docs
  perceiver-obs evaluate --policy runs/dmc100k/adapted/$1/seed-0 --episodes $2 --no-deterministic --record $data/$1-smooth-learned
}
learned cartpole-swingup 30
learned ball_in_cup-catch 20
learned reacher-easy 40
learned cheetah-run 24
learned finger-spin 12

# Longer on that: with the objective of colours of commit c19bb08, and then with that of edges of commit 9894b2b.
# (The last was first meant to take 36,000 steps, then 24,000: its first 1,400 had the learning rates of those.)
perceiver-obs train-predictor --data $(with_policies learned) --begin-with $out/second-half --out $out/third --samples 6 \
  --steps 25000 --learning-rate 1e-3
perceiver-obs train-predictor --data $(with_policies learned) --begin-with $out/third --out $out/model --samples 6 \
  --steps 14000 --learning-rate 1e-3
python -c "from perceiver_obs import CausalPerceiverIO
CausalPerceiverIO.from_pretrained('$out/model').save_pretrained('$out/half', half_precision=True)"
