def convert(model): raise NotImplementedError
