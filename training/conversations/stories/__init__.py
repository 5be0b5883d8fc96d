"""A grammar of short modern stories: plots in text files, a cast drawn at random, told beat by beat."""
