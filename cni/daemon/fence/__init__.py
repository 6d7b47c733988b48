"""The fence decides who reaches whom: `ruleset` makes nft text of the values of `model`, `enforcement` loads it."""
