"""The same question with fewer and fewer visual tokens: `python demos/quickstart.py`."""

import tokenprune
from tokenprune.eval import shapes

model, processor = shapes.load()  # any vision-language model of transformers, and its processor
sample = next(shapes.held_out(1))
inputs = processor(images=sample.image, text=shapes.prompt(sample.question.text), return_tensors="pt")

for keep in (1.0, 0.25, 0.05):
    with tokenprune.wrap(model, "uniform", keep=keep) as handle:
        output = model.generate(**inputs, max_new_tokens=1)
        answer = processor.decode(output[0, -1:])
    print(f"{sample.question.text} {answer}, by {handle.report().kept} of {handle.report().total} visual tokens")
