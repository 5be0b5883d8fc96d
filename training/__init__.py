"""How the embedded model was made: tokenizer, pretraining, chat tuning, export, evaluation.

`python -m training --data DIR --out models/` runs every stage, from the data shards to the shipped files.
"""
