"""Training CoViPAL's module, on a thin random copy of the embedded model."""

import json
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from PIL import Image

from tests.conftest import saved_model
from tests.learn.commands import refused, training
from tokenprune import CoViPAL, ProjectorPolicy, Selection, wrap
from tokenprune.checkpoints import load
from tokenprune.encoding import encode
from tokenprune.errors import InputError, InvalidArgumentError, PredictorError, TrainingError
from tokenprune.learn import Plan, Recipe, covipal, examples, losses, train_covipal
from tokenprune.learn.data import Example, encoded
from tokenprune.learn.teacher import Teacher
from tokenprune.predictors import PruningModule

QUESTIONS = ("how many objects are there?", "what color is the star?", "is there a red circle?")


@cache
def example(number):
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    return Example(image, QUESTIONS[number % 3], ("three", "red", "yes")[number % 3])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("thin"), text_layers=3)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load(str(checkpoint), dtype="float32")


@dataclass(kw_only=True)
class Fixed(ProjectorPolicy):
    """Keeps given places, and notes what it is shown."""

    needs = frozenset({"features", "text"})

    places: torch.Tensor = None
    seen: list = field(default_factory=list)

    def select(self, tokens, k):
        self.seen.append(tokens)
        return Selection.subset(self.places.expand(tokens.shape[0], -1))


def test_answers_stand_behind_the_prompt_with_their_end(loaded):
    model, processor = loaded
    batch = encoded(processor, model, [example(0), example(1)])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert ids.shape == mask.shape == batch.answer.shape
    for row, number in enumerate((0, 1)):
        prompt = encode(processor, model, QUESTIONS[number], [example(number).image])[0]["input_ids"][0]
        assert torch.equal(ids[row, : len(prompt)], prompt)
        answer = processor.tokenizer.decode(ids[row][batch.answer[row]])
        assert answer.split() == [example(number).answer, "<eos>"]
        assert batch.answer[row].nonzero()[:, 0].tolist() == [len(prompt), len(prompt) + 1]
        assert mask[row].sum() == len(prompt) + 2
    assert len(batch.inputs["pixel_values"]) == 2


def test_the_module_is_shown_what_the_policy_will_be(loaded):
    """The tokens, and the words of the prompt without the answer."""
    model, processor = loaded
    batch = [example(0), example(1)]
    teacher = Teacher(model, guide=0.5)
    with teacher.attached():
        (group,) = teacher.lesson(encoded(processor, model, batch)).groups
    tokens, places, attention = group.tokens, group.places, group.attention
    assert attention.shape == tokens.shape == places.shape[:2]
    assert (attention > 0).all()
    assert (attention.sum(1) < 1).all()
    for row, one in enumerate(batch):
        policy = Fixed(places=torch.arange(5), keep=5)
        with wrap(model, policy), torch.no_grad():
            model(**encode(processor, model, one.question, [one.image])[0])
        shown = policy.seen[0]
        torch.testing.assert_close(tokens.features[row], shown.features[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tokens.text[row][tokens.text_mask[row]], shown.text[0])
        assert tokens.grid == shown.grid
        assert places[row, :, 0].unique().tolist() == [row]


def test_hard_gates_are_the_pruned_model(loaded):
    """With the gates of some tokens at 0, the answers are those of the model that these were dropped from."""
    model, processor = loaded
    batch, kept = encoded(processor, model, [example(0), example(1)]), torch.tensor([3, 30, 31, 100, 255])
    with wrap(model, Fixed(places=kept, keep=5), logits="full"), torch.no_grad():
        expected = model(**batch.inputs).logits[:, :-1][batch.answer[:, 1:]]
    teacher = Teacher(model)
    with teacher.attached(), torch.no_grad():
        lesson = teacher.lesson(batch)
        places = lesson.groups[0].places
        gates = torch.full(places.shape[:2], -1e30)
        gates[:, kept] = 0.0
        found = teacher.retold(places.flatten(0, 1), gates.flatten())
        dense = teacher.retold(places.flatten(0, 1), torch.zeros(gates.numel()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dense, lesson.logits, atol=1e-4, rtol=1e-4)
    assert (found - dense).abs().max() > 1e-3
    assert lesson.targets.tolist() == batch.inputs["input_ids"][batch.answer].tolist()


def test_worth_is_what_opening_a_gate_takes_off_the_loss(loaded):
    model, processor = loaded
    teacher, recipe = Teacher(model), Recipe(words=1.0, distill=0.5)
    with teacher.attached():
        lesson = teacher.lesson(encoded(processor, model, [example(0)]))
        places, gates = lesson.groups[0].places[0], torch.full((1, 256), 0.3)
        gates[:, ::3] = 1.0
        ((worth,), told) = covipal._worth(teacher, lesson, [gates], recipe)

        def nats(gates):
            with torch.no_grad():
                logits = teacher.retold(places, gates.log().flatten())
            found = losses.words(logits, lesson.targets) + 0.5 * losses.distillation(logits, lesson.logits)
            return len(logits) * found.double()

        moved = 0.02 * torch.eye(256)[[int(worth.argmax()), int(worth.argmin()), 7]]
        lost = [float(nats(gates - one) - nats(gates + one)) for one in moved]
    torch.testing.assert_close(worth.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert told.keys() == {"words", "distill"}
    assert lost[0] > 0 > lost[1]
    high, low, mid = worth.max(), worth.min(), worth[0, 7]
    assert (lost[0] - lost[2]) / (lost[0] - lost[1]) == pytest.approx(float((high - mid) / (high - low)), abs=0.03)


def test_gates_are_those_of_the_budget():
    u, recipe = torch.randn(40, 100, generator=torch.Generator().manual_seed(0)), Recipe(keeps=(0.02, 0.5), leak=0.2)
    k = covipal._budgets(u, recipe)
    assert k.shape == (40, 1)
    assert k.min() >= 2
    assert k.max() <= 50
    assert len(k.unique()) > 15
    gates = covipal._gates(u, k, recipe)
    assert torch.equal((gates == 1).sum(1), k[:, 0].long())
    assert ((gates == 1) | (gates == torch.tensor(recipe.leak))).all()
    for row, count in zip(range(40), k[:, 0].long().tolist(), strict=True):
        assert gates[row, u[row].topk(count).indices].eq(1).all()


def test_batches_of_imitation_are_worked_out_once_and_alike_after_a_stop(loaded, tmp_path):
    model, processor = loaded
    asked, recipe = [], Recipe(batch=2, hidden=8, heads=2, imitate=0.8, remember=2)

    def noted(number):
        asked.append(number)
        return example(number)

    given = {"plan": Plan(steps=10, rate=1e-2, save_every=3), "recipe": recipe}
    whole, _ = train_covipal(model, processor, noted, tmp_path / "whole", **given)
    assert asked == [0, 1, 2, 3, 16, 17, 18, 19]  # two batches for eight steps, then a new one for each

    def stops(number):
        if number == 18:
            raise InterruptedError
        return example(number)

    with pytest.raises(InterruptedError):
        train_covipal(model, processor, stops, tmp_path / "parts", **given)
    again, _ = train_covipal(model, processor, noted, tmp_path / "parts", **given)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_attention_may_be_what_is_imitated(loaded, tmp_path):
    model, processor = loaded
    recipe = Recipe(batch=2, hidden=8, heads=2, imitate=1.0, signal="attention")
    _, facts = train_covipal(model, processor, example, tmp_path, plan=Plan(steps=2), recipe=recipe)
    assert facts["last"].keys() == {"loss", "norm"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"keeps": (0.5, 0.1)}, r"keeps=\(0.5, 0.1\) are no shares"),
        ({"equal": 0.0}, "equal=0.0 is no gate"),
        ({"refine": 0.0}, "refine=0.0"),
        ({"signal": "atention"}, "signal='atention' is neither of worth, attention"),
        ({"leak": 1.0}, "leak=1.0 is no gate"),
        ({"batch": 0}, "batch=0"),
        ({"remember": 0}, "remember=0"),
    ],
)
def test_recipes_that_cannot_be_get_a_sentence(given, words):
    with pytest.raises(InvalidArgumentError, match=words):
        Recipe(**given)


def test_the_model_is_left_as_it_was(loaded):
    model, _ = loaded
    before = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    asked = [one.requires_grad for one in model.parameters()]
    attention = model.model.language_model.config._attn_implementation
    teacher = Teacher(model)
    with teacher.attached():
        assert not any(one.requires_grad for one in model.parameters())
    assert {name: len(module._forward_pre_hooks) for name, module in model.named_modules()} == before
    assert [one.requires_grad for one in model.parameters()] == asked
    assert model.model.language_model.config._attn_implementation == attention


def test_training_moves_the_module_alone_and_it_prunes(loaded, tmp_path):
    model, processor = loaded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan, recipe = Plan(steps=4, rate=1e-2), Recipe(batch=2, hidden=8, heads=2, imitate=0.5)
    module, facts = train_covipal(model, processor, example, tmp_path, plan=plan, recipe=recipe, data="noise")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert facts["last"].keys() == {"loss", "words", "distill", "norm"}
    assert facts["base"]["width"] == 24
    assert (module.head.weight.grad is None) or not module.training
    policy = CoViPAL(predictor=tmp_path, keep=7)
    inputs, _ = encode(processor, model, QUESTIONS[0], [example(0).image])
    with wrap(model, policy) as handle, torch.no_grad():
        model(**inputs)
    assert handle.report().kept == 7
    same = CoViPAL(predictor=module, keep=7)
    with wrap(model, same) as again, torch.no_grad():
        model(**inputs)
    assert torch.equal(again.report().units[0].indices, handle.report().units[0].indices)


def test_a_module_of_another_model_is_refused_naming_both(loaded, tmp_path):
    model, _ = loaded
    module = PruningModule(width=24, hidden=8, heads=2, base={"model_type": "llava", "width": 4096, "layers": 32})
    with pytest.raises(PredictorError, match=r"trained for llava \(32 layers of width 4096.*3 layers of width 24"):
        wrap(model, CoViPAL(predictor=module, keep=3))
    assert not model.model._forward_pre_hooks


def test_a_file_of_examples_is_read_in_an_order_of_its_own_every_pass(tmp_path):
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "question": f"{name}?", "answer": name} for name in "abc"]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    given = examples(str(tmp_path / "data.jsonl"))
    passes = ["".join(given(number).answer for number in range(start, start + 3)) for start in range(0, 30, 3)]
    assert {"".join(sorted(one)) for one in passes} == {"abc"}
    assert len(set(passes)) > 2
    assert given(4).question == f"{given(4).answer}?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no example"),
        ("{", r"line 1 is no JSON"),
        ('{"image": "a.png", "question": "q"}', r"line 1 lacks answer"),
        ("[1]", "lacks image, question, answer"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path, text, words):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        examples(str(tmp_path / "data.jsonl"))


def test_names_of_data_come_from_entry_points():
    with pytest.raises(InputError, match=r"is no file and none of easy_vqa, shapes \(did you mean 'shapes'\?\)"):
        examples("shape")
    given = examples("shapes")
    assert given(3) == given(3) or given(3).question == given(3).question
    assert given(3).answer
    assert given(4).question != given(3).question


@pytest.fixture
def invoke(checkpoint, tmp_path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": QUESTIONS[i], "answer": example(i).answer} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    given = {"--model": checkpoint, "--data": tmp_path / "data.jsonl", "--out": tmp_path / "out", "--steps": 3}
    given |= {"--batch": 2, "--hidden": 8}
    return training("covipal", given)


def test_the_command_trains_and_goes_on(invoke, tmp_path):
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "parameters" in result.stdout
    assert "beside the frozen model" in result.stdout
    assert CoViPAL(predictor=tmp_path / "out", keep=3).trained.parameters_count > 0
    assert invoke().exit_code == 0
    other = invoke("--rate", "0.5")
    refused(other, "other settings (rate=0.002 there, 0.5 here)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "nothing"), "data='nothing' is no file"),
        (("--model", "/nowhere"), "/nowhere"),
        (("--steps", "40", "--rate", "1e30"), "keeps what was saved last"),
    ],
)
def test_bad_input_gets_one_sentence(invoke, options, words):
    refused(invoke(*options), words)


def test_a_loss_that_is_no_number_leaves_the_model_free(loaded, tmp_path):
    model, processor = loaded
    with pytest.raises(TrainingError):
        train_covipal(
            model, processor, example, tmp_path, plan=Plan(steps=40, rate=1e30), recipe=Recipe(batch=1, hidden=8)
        )
    with wrap(model, "random", keep=3):
        pass
