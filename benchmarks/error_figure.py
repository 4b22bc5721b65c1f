"""The figure of errors by scale."""


def draw(document, path):
    pass
