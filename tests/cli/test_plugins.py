"""From NAME:ARGS to a delivery or an IP filter."""

from __future__ import annotations

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_smtpguard.cli import plugins
from twisted_smtpguard.delivery.discard import DiscardDelivery
from twisted_smtpguard.interfaces import PASS, IDeliveryFactory, IIPFilter, IIPFilterFactory
from twisted_smtpguard.limits.limits import Limits


@implementer(IIPFilter)
class PassFilter:
    def check(self, peer):
        return PASS


@implementer(IDeliveryFactory)
class Plugin:
    """Remembers what it was asked for. An exception to make is raised."""

    summary = "For tests."
    argument_format = "Anything."

    def __init__(self, name="plugin", made=None):
        self.name = name
        self.made = made or DiscardDelivery()

    def make_delivery(self, argument, reactor):
        self.asked = argument, reactor
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


class Other(Plugin):
    pass


@implementer(IIPFilterFactory)
class FilterPlugin(Plugin):
    make_filter = Plugin.make_delivery


def installed(monkeypatch, *plugins):
    """Those that other distributions have brought."""
    monkeypatch.setattr("twisted.plugin.getPlugins", lambda interface: iter(plugins))


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


@pytest.mark.parametrize("text", ["summary", "argument_format"])
@pytest.mark.parametrize("value", [None, b"bytes"])
def test_a_plugin_without_a_text_for_help_is_an_error_that_names_it(text, value):
    plugin = Plugin()
    setattr(plugin, text, value)
    with pytest.raises(ValueError, match=rf"^the plugin test_plugins\.Plugin has no text called '{text}'$"):
        plugins.by_name([plugin])


def test_a_plugin_that_fails_is_an_error_that_names_it():
    factories = plugins.by_name([Plugin(made=KeyError("key"))])
    with pytest.raises(ValueError, match=r"^test_plugins\.Plugin failed with KeyError: 'key'$"):
        plugins.make_delivery("plugin", object(), factories)


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
    assert [factory.name for factory in factories] == ["maildir", "smtp", "lmtp", "discard"]
    for factory in factories:
        verifyObject(IDeliveryFactory, factory)


def test_a_plugin_of_another_distribution_stands_beside_the_builtins(monkeypatch):
    plugin = Plugin()
    installed(monkeypatch, plugin)
    factories = plugins.delivery_factories("mx.example", Limits())
    assert sorted(factories) == ["discard", "lmtp", "maildir", "plugin", "smtp"]
    assert factories["plugin"] is plugin


def test_a_plugin_of_another_distribution_cannot_take_the_place_of_a_builtin(monkeypatch):
    installed(monkeypatch, Plugin("maildir"))
    with pytest.raises(ValueError, match=r"MaildirFactory and test_plugins\.Plugin"):
        plugins.delivery_factories("mx.example", Limits())


# IP filters.


def test_the_factory_of_an_ip_filter_gets_the_argument_and_the_reactor():
    plugin, reactor = FilterPlugin(made=PassFilter()), object()
    assert plugins.make_filter("plugin:a:b", reactor, plugins.by_name([plugin])).filter is plugin.made
    assert plugin.asked == ("a:b", reactor)


@pytest.mark.parametrize(
    ("specification", "name", "fail_open", "argument"),
    [
        ("plugin", "plugin", False, ""),
        ("plugin:fail-open:a", "plugin", False, "fail-open:a"),
        ("fail-open:plugin", "plugin", True, ""),
        ("fail-open:plugin:a:b", "plugin", True, "a:b"),
        ("name=zen:plugin:key=secret", "zen", False, "key=secret"),
        ("name=zen:fail-open:plugin:a:b", "zen", True, "a:b"),
        ("plugin:name=zen", "plugin", False, "name=zen"),
    ],
)
def test_an_ip_filter_has_fail_open_and_its_name_in_the_log_before_its_name(
    specification, name, fail_open, argument
):
    plugin = FilterPlugin(made=PassFilter())
    entry = plugins.make_filter(specification, object(), plugins.by_name([plugin]))
    assert (entry.name, entry.fail_open, plugin.asked[0]) == (name, fail_open, argument)
    assert plugins.shown_filter(entry) == ("fail-open:" if fail_open else "") + name


def test_an_unknown_ip_filter_lists_those_that_there_are():
    factories = plugins.by_name([FilterPlugin("zeta"), FilterPlugin("alpha")])
    with pytest.raises(ValueError, match=r"^there is no IP filter called 'beta'; known are alpha, zeta$"):
        plugins.make_filter("beta:x", object(), factories)


def test_a_factory_that_makes_no_ip_filter_is_an_error_that_names_it():
    factories = plugins.by_name([FilterPlugin(made="sieve")])
    problem = r"^test_plugins\.FilterPlugin made 'sieve', which does not provide IIPFilter$"
    with pytest.raises(ValueError, match=problem):
        plugins.make_filter("plugin", object(), factories)


def test_a_factory_of_ip_filters_that_fails_is_an_error_that_names_it():
    factories = plugins.by_name([FilterPlugin(made=KeyError("key"))])
    with pytest.raises(ValueError, match=r"^test_plugins\.FilterPlugin failed with KeyError: 'key'$"):
        plugins.make_filter("plugin", object(), factories)


def test_the_built_in_ip_filters_are_factories():
    factories = plugins.builtin_filters()
    assert [factory.name for factory in factories] == ["networks", "dnsbl"]
    for factory in factories:
        verifyObject(IIPFilterFactory, factory)


def test_an_ip_filter_of_another_distribution_stands_beside_the_builtins(monkeypatch):
    plugin = FilterPlugin()
    installed(monkeypatch, plugin)
    factories = plugins.filter_factories()
    assert sorted(factories) == ["dnsbl", "networks", "plugin"]
    assert factories["plugin"] is plugin


def test_an_ip_filter_of_another_distribution_cannot_take_the_place_of_a_builtin(monkeypatch):
    installed(monkeypatch, FilterPlugin("networks"))
    with pytest.raises(ValueError, match=r"NetworksFactory and test_plugins\.FilterPlugin"):
        plugins.filter_factories()


def test_no_ip_filter_may_be_called_what_marks_one_that_fails_open(monkeypatch):
    installed(monkeypatch, FilterPlugin("fail-open"))
    with pytest.raises(ValueError, match=r"^the plugin test_plugins\.FilterPlugin has the name 'fail-open'"):
        plugins.filter_factories()


# Discovery and help.


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
    factories = plugins.by_name([Plugin()])
    assert plugins.description("delivery", "plugin", factories) == "plugin: For tests.\n\nAnything."
