"""The Perceiver learns on with the policy: online episodes, and a replay buffer of new contexts."""
