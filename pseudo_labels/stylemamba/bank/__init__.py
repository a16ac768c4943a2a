"""The style bank: one conditional state-space network for many styles, chosen by words.

`painter` is the network, `words` maps a description to weights of styles, `targets` and `train`
make a bank from photos, and `packaged` loads the one that ships.
"""
