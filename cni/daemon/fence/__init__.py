"""The fence decides who reaches whom. `ruleset` turns the values of `model` into nft text; `FenceController` loads it."""
