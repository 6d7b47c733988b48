"""The fence: who reaches whom. `values` go in, nft `texts` come out, `barrier` puts them in force and keeps them so."""
