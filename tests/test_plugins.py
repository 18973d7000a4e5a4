"""From NAME:ARGS to a delivery."""

from __future__ import annotations

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_smtpguard import plugins
from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.interfaces import IDeliveryFactory
from twisted_smtpguard.limits import Limits


@implementer(IDeliveryFactory)
class Plugin:
    """Remembers what it was asked for."""

    summary = "For tests."
    argument_format = "Anything."

    def __init__(self, name="plugin", made=None):
        self.name = name
        self.made = made or DiscardDelivery()

    def make_delivery(self, argument, reactor):
        self.asked = argument, reactor
        return self.made


class Other(Plugin):
    pass


@pytest.mark.parametrize(
    ("specification", "name", "argument"),
    [
        ("discard", "discard", ""),
        ("maildir:./x", "maildir", "./x"),
        ("maildir:", "maildir", ""),
        ("lmtp:host:24:x=:", "lmtp", "host:24:x=:"),
        (":x", "", "x"),
    ],
)
def test_only_the_first_colon_splits(specification, name, argument):
    assert plugins.split_specification(specification) == (name, argument)


def test_the_factory_of_that_name_gets_the_argument_and_the_reactor():
    plugin, reactor = Plugin(), object()
    made = plugins.make_delivery("plugin:a:b", reactor, plugins.by_name([Plugin("x"), plugin]))
    assert made is plugin.made
    assert plugin.asked == ("a:b", reactor)


def test_an_unknown_name_lists_those_that_there_are():
    factories = plugins.by_name([Plugin("zeta"), Plugin("alpha")])
    with pytest.raises(ValueError, match="no delivery called 'beta'; known are alpha, zeta"):
        plugins.make_delivery("beta:x", object(), factories)


def test_two_plugins_of_one_name_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"test_plugins\.Plugin and test_plugins\.Other both have .*'same'"):
        plugins.by_name([Plugin("same"), Plugin("else"), Other("same")])


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a_b", "a:b", "a b", "ä", "a\n", None, 7])
def test_a_name_that_cannot_stand_before_a_colon_is_an_error_that_names_the_plugin(name):
    with pytest.raises(ValueError, match=r"test_plugins\.Plugin has the name"):
        plugins.by_name([Plugin(name)])


def test_a_plugin_without_a_name_is_an_error_too():
    with pytest.raises(ValueError, match=r"builtins\.object has the name None"):
        plugins.by_name([object()])


def test_a_factory_that_makes_something_else_is_an_error_that_names_it():
    with pytest.raises(
        ValueError, match=r"test_plugins\.Plugin made 'mail', which does not provide IDelivery"
    ):
        plugins.make_delivery("plugin", object(), plugins.by_name([Plugin(made="mail")]))


def test_what_a_factory_says_of_its_argument_goes_through():
    with pytest.raises(ValueError, match="discard takes no argument"):
        plugins.make_delivery(
            "discard:x", object(), plugins.by_name(plugins.builtin_deliveries("h", Limits()))
        )


def test_the_builtins_are_factories():
    factories = plugins.builtin_deliveries("mx.example", Limits())
    assert [factory.name for factory in factories] == ["maildir", "discard"]
    for factory in factories:
        verifyObject(IDeliveryFactory, factory)


def test_a_plugin_of_another_distribution_stands_beside_the_builtins(monkeypatch):
    plugin = Plugin()
    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: iter([plugin]))
    factories = plugins.delivery_factories("mx.example", Limits())
    assert sorted(factories) == ["discard", "maildir", "plugin"]
    assert factories["plugin"] is plugin


def test_a_plugin_of_another_distribution_cannot_take_the_place_of_a_builtin(monkeypatch):
    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: iter([Plugin("maildir")]))
    with pytest.raises(ValueError, match=r"MaildirFactory and test_plugins\.Plugin"):
        plugins.delivery_factories("mx.example", Limits())


def test_discovery_finds_what_lies_in_twisted_plugins(tmp_path, monkeypatch):
    import twisted.plugins

    (tmp_path / "smtpguard_found.py").write_text(
        "from test_plugins import Plugin\n"
        "from zope.interface import alsoProvides\n"
        "from twisted.plugin import IPlugin\n"
        "found = Plugin('found')\n"
        "alsoProvides(found, IPlugin)\n"
    )
    monkeypatch.setattr(twisted.plugins, "__path__", [*twisted.plugins.__path__, str(tmp_path)])
    assert [factory.name for factory in plugins.discover(IDeliveryFactory)] == ["found"]


def test_the_table_has_a_line_a_factory_in_order_of_their_names():
    factories = plugins.by_name([Plugin("zeta"), Plugin("al")])
    assert plugins.table(factories) == "al    For tests.\nzeta  For tests."


def test_the_description_tells_summary_and_argument():
    assert plugins.description(Plugin()) == "plugin: For tests.\n\nAnything."
