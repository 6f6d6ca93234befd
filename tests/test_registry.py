import pytest

from tokenprune import registry
from tokenprune.errors import InvalidArgumentError, TokenPruneError, UnknownPolicyError
from tokenprune.policies import DivPrune


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(registry, "_POLICIES", {})


def test_wildcards_list_sorted_names():
    assert registry.list_policies("cdpruner*") == ["cdpruner", "cdpruner-openvino"]
    assert registry.list_policies("nothing*") == []
    names = registry.list_policies()
    assert names == sorted(names)
    assert {"none", "random", "uniform", "pool", "divprune", "cdpruner"} <= set(names)


def test_a_name_gives_its_class_and_the_class_knows_its_name():
    assert registry.get_policy("divprune") is DivPrune
    assert DivPrune.name == "divprune"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownPolicyError) as caught:
        registry.get_policy("cdprunner")
    assert str(caught.value) == "policy='cdprunner' is not registered (did you mean 'cdpruner'?)."
    assert isinstance(caught.value, TokenPruneError)


def test_a_name_like_no_other_lists_what_is_known():
    with pytest.raises(UnknownPolicyError, match=r"'zzz' is not registered: known are .*divprune.*uniform"):
        registry.get_policy("zzz")


def test_a_taken_name_is_refused(empty):
    @registry.register("mine")
    class First:
        pass

    with pytest.raises(InvalidArgumentError, match=r"name='mine' is taken by .*First"):

        @registry.register("mine")
        class Second:
            pass

    assert registry.get_policy("mine") is First


def test_registering_a_class_again_replaces_it(empty):
    """As happens when a notebook cell or a module is run again."""

    def define():
        @registry.register("mine")
        class Mine:
            pass

        return Mine

    define()
    second = define()
    assert registry.get_policy("mine") is second
