"""The fence decides who reaches whom: `ruleset` makes nft text of the values of `model`, `FenceController` loads it."""
