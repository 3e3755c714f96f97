"""The offline run: the zoo that the shipped selector learnt from, and how it is measured."""
