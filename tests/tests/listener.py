"""What the MQTT listener has to do, said by paho. One scenario a run, named by SCENARIO, in the protocol VERSION 4 or 5
on PORT; a scenario fails by an exception. Nothing here waits for a time to pass in order to find that something is
done: what has to come is waited for, and "nothing else came" is said by a last message behind it."""

import os
import queue
import socket
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT = int(os.environ["PORT"])
VERSION = int(os.environ["VERSION"])
V5 = VERSION == 5
PATIENCE = 20


def properties(packet, **values):
    if not V5:
        return None
    made = Properties(packet)
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Client:
    """A connected client; `lasting` is the life of its session in seconds."""

    def __init__(self, name, clean=True, lasting=0, keep_alive=60, will=None, manual_ack=False, login=None, tls=None, **more):
        self.messages, self.left = queue.Queue(), queue.Queue()
        self.answers, self.arrived = {}, threading.Condition()
        if V5:
            self.paho = paho.Client(paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5,
                                    reconnect_on_failure=False, manual_ack=manual_ack)
        else:
            self.paho = paho.Client(paho.CallbackAPIVersion.VERSION2, name, clean_session=clean and not lasting,
                                    protocol=paho.MQTTv311, reconnect_on_failure=False, manual_ack=manual_ack)
        self.paho.max_inflight_messages_set(1000)
        self.paho.on_message = lambda _c, _u, message: self.messages.put(message)
        self.paho.on_connect = lambda _c, _u, flags, reason, props: self.answer("connect", (flags, reason, props))
        self.paho.on_disconnect = lambda _c, _u, _f, reason, _p: self.left.put(reason)
        self.paho.on_subscribe = lambda _c, _u, mid, reasons, _p: self.answer(("sub", mid), reasons)
        self.paho.on_unsubscribe = lambda _c, _u, mid, reasons, _p: self.answer(("unsub", mid), reasons)
        self.paho.on_publish = lambda _c, _u, mid, reason, _p: self.answer(("pub", mid), reason)
        if will:
            self.paho.will_set(**will)
        if login:
            self.paho.username_pw_set(*login)
        if tls:
            self.paho.tls_set(**tls)
        if V5:
            more["SessionExpiryInterval"] = lasting
            self.paho.connect("127.0.0.1", PORT, keep_alive, clean_start=clean,
                              properties=properties(PacketTypes.CONNECT, **more))
        else:
            self.paho.connect("127.0.0.1", PORT, keep_alive)
        self.paho.loop_start()
        flags, self.reason, self.welcome = self.wait("connect")
        self.present = flags.session_present

    def answer(self, key, value):
        with self.arrived:
            self.answers[key] = value
            self.arrived.notify_all()

    def wait(self, key):
        with self.arrived:
            assert self.arrived.wait_for(lambda: key in self.answers, PATIENCE), f"no answer to {key}"
            return self.answers.pop(key)

    def subscribe(self, topic, qos=0, id=None, **options):
        more = {"options": SubscribeOptions(qos=qos, **options)} if V5 else {"qos": qos}
        if id:
            more["properties"] = properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=id)
        _, mid = self.paho.subscribe(topic, **more)
        return self.wait(("sub", mid))[0].value

    def unsubscribe(self, topic):
        _, mid = self.paho.unsubscribe(topic)
        return self.wait(("unsub", mid))

    def publish(self, topic, payload, qos=1, retain=False, **more):
        props = properties(PacketTypes.PUBLISH, **more) if more else None
        mid = self.paho.publish(topic, payload, qos, retain, props).mid
        return self.wait(("pub", mid)).value

    def hear(self):
        return self.messages.get(timeout=PATIENCE)

    def hears(self, *payloads):
        got = [self.hear().payload.decode() for _ in payloads]
        assert sorted(got) == sorted(payloads), f"{got} instead of {payloads}"

    def hears_nothing_but(self, *payloads, by, topic="end"):
        """`by` publishes a last message, on a topic that this client is subscribed to."""
        by.publish(topic, "last", 2)  # A QoS 2 message is heard when it is released, behind QoS 1 ones that came later.
        got = []
        while True:
            message = self.hear()
            if message.payload == b"last" and message.topic == topic:
                break
            got.append(message.payload.decode())
        assert sorted(got) == sorted(payloads), f"{got} instead of {payloads}"

    def was_cut(self):
        return self.left.get(timeout=PATIENCE).value

    def leave(self, reason=None, **more):
        if V5:
            reason = reason and ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
            self.paho.disconnect(reason, properties(PacketTypes.DISCONNECT, **more) if more else None)
        else:
            self.paho.disconnect()
        self.left.get(timeout=PATIENCE)
        self.paho.loop_stop()

    def cut(self):
        self.paho.socket().shutdown(socket.SHUT_RDWR)
        self.left.get(timeout=PATIENCE)


def every_qos():
    listeners = [Client(f"listener-{qos}") for qos in range(3)]
    for qos, listener in enumerate(listeners):
        assert listener.subscribe("q/+", qos) == qos
    sender = Client("sender")
    for sent in range(3):
        # The name of a success at QoS 1 is 0 in both versions.
        assert sender.publish(f"q/{sent}", f"at {sent}", sent) == 0
        for wanted, listener in enumerate(listeners):
            heard = listener.hear()
            assert (heard.topic, heard.payload, heard.qos) == (f"q/{sent}", f"at {sent}".encode(), min(sent, wanted))
            assert not heard.retain and not heard.dup
    many = [sender.paho.publish("q/many", str(n), 1 + n % 2).mid for n in range(300)]
    for mid in many:
        sender.wait(("pub", mid))
    # Of one QoS they come in their order.
    heard = [int(listeners[2].hear().payload) for _ in many]
    for odd in (0, 1):
        assert [n for n in heard if n % 2 == odd] == list(range(odd, 300, 2)), heard
    listeners[2].unsubscribe("q/+")
    listeners[2].subscribe("end", 1)
    sender.publish("q/1", "unheard")
    listeners[2].hears_nothing_but(by=sender)


def sessions():
    sender = Client("sender")
    first = Client("sleeper", clean=False, lasting=3600)
    assert not first.present
    first.subscribe("s/#", 2)
    first.leave()
    for qos in range(3):
        sender.publish("s/x", f"while away {qos}", qos)
    second = Client("sleeper", clean=False, lasting=3600)
    assert second.present
    # What was published without an acknowledgement is not kept for who is away.
    second.hears_nothing_but("while away 1", "while away 2", by=sender, topic="s/end")
    second.cut()
    sender.publish("s/x", "after a cut")
    third = Client("sleeper", clean=False, lasting=3600)
    assert third.present
    third.hears("after a cut")
    third.leave()
    fresh = Client("sleeper")
    assert not fresh.present
    fresh.subscribe("end", 1)
    sender.publish("s/x", "unheard")
    fresh.hears_nothing_but(by=sender)
    fresh.leave()
    assert not Client("sleeper", clean=False).present
    if not V5:
        return
    # Who leaves and returns at once may be heard first on the new connection: often enough to meet that.
    for lasting, at_the_end in [(1, None)] + [(3600, 0)] * 20:
        over = Client("brief", lasting=lasting)
        over.subscribe("s/#", 1)
        over.leave(**({} if at_the_end is None else {"SessionExpiryInterval": at_the_end}))
        if at_the_end is None:
            time.sleep(1.1)  # Longer than the session lives: it is over however slow this machine is.
        again = Client("brief", clean=False)
        assert not again.present, f"a session of {lasting} s, at the end {at_the_end}"
        again.leave()
    # A session that was to end with its connection cannot be made to last by its DISCONNECT.
    cheat = Client("cheat")
    cheat.paho.disconnect(properties=properties(PacketTypes.DISCONNECT, SessionExpiryInterval=100))
    cheat.left.get(timeout=PATIENCE)
    assert not Client("cheat", clean=False).present


def take_over():
    sender = Client("sender")
    first = Client("one", clean=False, lasting=3600, manual_ack=True)
    first.subscribe("t/#", 1)
    sender.publish("t/x", "unacknowledged")
    heard = first.hear()
    second = Client("one", clean=False, lasting=3600)
    assert second.present
    assert first.was_cut() == (0x8E if V5 else 0x80), "3.1.1 has no word for it"
    again = second.hear()
    assert (again.payload, again.mid, again.dup) == (b"unacknowledged", heard.mid, True)
    third = Client("one")
    assert not third.present
    second.was_cut()
    third.subscribe("end", 1)
    sender.publish("t/x", "of the session before")
    third.hears_nothing_but(by=sender)


def wills():
    listener, sender = Client("listener"), Client("sender")
    listener.subscribe("will/#", 2)
    will = lambda text, **more: {"topic": "will/x", "payload": text, "qos": 1, **more}
    Client("a", will=will("cut")).cut()
    listener.hears("cut")
    Client("b", will=will("never")).leave()
    Client("c", will=will("kept", retain=True)).cut()
    listener.hears("kept")
    late = Client("late")
    late.subscribe("will/#", 1)
    assert late.hear().retain
    taken = Client("d", will=will("taken over"))
    Client("d")
    listener.hears("taken over")
    listener.hears_nothing_but(by=sender, topic="will/end")
    if V5:
        wills_of_version_5(listener, sender, will)


def wills_of_version_5(listener, sender, will):
    def props(**more):
        return {"properties": properties(PacketTypes.WILLMESSAGE, **more)}

    for reason in (0x04, 0x80):
        Client("e", will=will(f"left with {reason}")).leave(reason)
        listener.hears(f"left with {reason}")
    # A delay ends with the session at the latest: at once, after a second, by a clean start.
    delayed = props(WillDelayInterval=3600)
    Client("f", will=will("no session", **delayed)).cut()
    listener.hears("no session")
    Client("g", lasting=1, will=will("session over", **delayed)).cut()
    listener.hears("session over")
    Client("h", lasting=3600, will=will("begun anew", **delayed)).cut()
    Client("h")
    listener.hears("begun anew")
    # Its expiry counts from when it is published.
    brief = Client("i", will=will("fresh", **props(MessageExpiryInterval=1, ContentType="text")))
    time.sleep(1.1)
    brief.cut()
    heard = listener.hear()
    assert (heard.payload, heard.properties.ContentType) == (b"fresh", "text")
    # Who comes back in time, or takes over from itself, has not died.
    for how in ("cut", "taken over"):
        first = Client("j", lasting=3600, will=will(f"never: {how}", **props(WillDelayInterval=3)))
        if how == "cut":
            first.cut()
        assert Client("j", clean=False, lasting=3600).present
    Client("k", lasting=3600, will=will("a second later", **props(WillDelayInterval=4))).cut()
    listener.hears("a second later")
    listener.hears_nothing_but(by=sender, topic="will/end")


def retained():
    sender = Client("sender")
    live = Client("live")
    live.subscribe("r/#", 1)
    sender.publish("r/a", "old", retain=True)
    sender.publish("r/a", "new", retain=True)
    sender.publish("r/b", "gone", qos=2, retain=True)
    sender.publish("r/b", "", qos=0, retain=True)
    heard = [live.hear() for _ in range(4)]
    assert not any(message.retain for message in heard), "a live message is not a retained one"
    late = Client("late")
    late.subscribe("r/#", 1)
    late.subscribe("end", 1)
    message = late.hear()
    assert (message.payload, message.retain, message.qos) == (b"new", True, 1)
    late.subscribe("r/#", 0)  # Again: 3.1.1 always sends, and so does version 5 unless told.
    message = late.hear()
    assert (message.payload, message.retain, message.qos) == (b"new", True, 0)
    late.hears_nothing_but(by=sender)
    for n in range(500):
        sender.paho.publish(f"many/{n}", "x" * 1000, 1, True)
    sender.publish("many/last", "x", retain=True)
    many = Client("many", **({"ReceiveMaximum": 5} if V5 else {}))
    many.subscribe("many/#", 1)
    topics = {many.hear().topic for _ in range(501)}
    assert len(topics) == 501
    for topic in topics:
        sender.paho.publish(topic, "", 1, True)
    if not V5:
        return
    # Retain handling: 0 always, 1 only if new, 2 never.
    for handling, first, second in [(0, ["new"], ["new"]), (1, ["new"], []), (2, [], [])]:
        client = Client("handling")
        client.subscribe("end", 1)
        for wanted in (first, second):
            client.subscribe("r/a", 1, retainHandling=handling)
            client.hears_nothing_but(*wanted, by=sender)
        client.leave()
    published = Client("as published")
    published.subscribe("r/#", 1, retainAsPublished=True, retainHandling=2)
    sender.publish("r/a", "flag", retain=True)
    sender.publish("r/a", "no flag")
    assert [published.hear().retain for _ in range(2)] == [True, False]
    sender.publish("r/brief", "x", retain=True, MessageExpiryInterval=1)
    time.sleep(1.1)
    late = Client("late")
    late.subscribe("end", 1)
    late.subscribe("r/brief", 1)
    late.hears_nothing_but(by=sender)


def filters():
    sender = Client("sender")
    topics = ["a", "a/b", "a/b/c", "a//c", "/a", "ä/ö", "a b"]
    table = {
        "#": topics,
        "a": ["a"],
        "a/#": ["a", "a/b", "a/b/c", "a//c"],
        "+": ["a", "a b"],
        "a/+": ["a/b"],
        "a/+/c": ["a/b/c", "a//c"],
        "+/+": ["a/b", "/a", "ä/ö"],
        "/+": ["/a"],
        "ä/+": ["ä/ö"],
        "$SYS/#": [],
    }
    listeners = {}
    for n, filter in enumerate(table):
        listeners[filter] = Client(f"filter-{n}")
        assert listeners[filter].subscribe(filter, 1) == 1
        listeners[filter].subscribe("end", 1)
    for topic in topics:
        sender.publish(topic, topic)
    # Nobody may publish there, so there is nothing that # must not match; and the sender is told, if it can be.
    assert sender.publish("$SYS/x", "forbidden") == (0x87 if V5 else 0)
    for filter, wanted in table.items():
        listeners[filter].hears_nothing_but(*wanted, by=sender)
    overlapping = Client("overlapping")
    for filter, qos in [("a/#", 0), ("a/+", 2), ("+/b", 1), ("end", 1)]:
        overlapping.subscribe(filter, qos)
    sender.publish("a/b", "once", 2)
    assert overlapping.hear().qos == 2
    overlapping.hears_nothing_but(by=sender)
    bad = {"a/#/b": 0x8F, "a#": 0x8F, "+a": 0x8F, "$share/g/a": 0x9E}
    for filter, reason in bad.items():
        _, mid = (sender.paho.subscribe([(filter, SubscribeOptions(1) if V5 else 1)]) if filter == "$share/g/a"
                  else raw_subscribe(sender, filter))
        assert sender.wait(("sub", mid))[0].value == (reason if V5 else 0x80), filter
    if V5:
        echo = Client("echo")
        echo.subscribe("echo", 1, noLocal=True)
        echo.subscribe("end", 1)
        echo.publish("echo", "own")
        sender.publish("echo", "of another")
        echo.hears_nothing_but("of another", by=sender)


def raw_subscribe(client, filter):
    """paho itself refuses a wrong filter."""
    return client.paho._send_subscribe(False, [(filter.encode(), SubscribeOptions(1) if V5 else 1)])


def said_about_a_message():
    sender, listener = Client("sender"), Client("listener")
    listener.subscribe("p/#", 1, id=7)
    listener.subscribe("p/+", 1, id=300)
    said = {"PayloadFormatIndicator": 1, "ContentType": "text/plain", "ResponseTopic": "answers/1",
            "CorrelationData": b"\x00\xff", "UserProperty": [("k", "1"), ("k", "2"), ("ü", "")],
            "MessageExpiryInterval": 1000}
    sender.publish("p/x", "all", **said)
    got = listener.hear().properties
    for name, value in said.items():
        if name == "MessageExpiryInterval":
            assert 0 < got.MessageExpiryInterval <= value
        else:
            assert getattr(got, name) == value, name
    assert sorted(got.SubscriptionIdentifier) == [7, 300]
    # Aliases: set, used, changed.
    for topic, alias, heard in [("p/long", 1, "p/long"), ("", 1, "p/long"), ("p/new", 1, "p/new"), ("", 1, "p/new")]:
        props = properties(PacketTypes.PUBLISH, TopicAlias=alias)
        sender.paho.publish(topic, "x", 1, False, props)
        assert listener.hear().topic == heard
    assert sender.welcome.TopicAliasMaximum == 32
    # Expiry while the receiver is away.
    away = Client("away", lasting=3600)
    away.subscribe("e/#", 1)
    away.leave()
    sender.publish("e/x", "too late", MessageExpiryInterval=1)
    sender.publish("e/x", "in time", MessageExpiryInterval=1000)
    time.sleep(1.1)
    back = Client("away", clean=False, lasting=3600)
    message = back.hear()
    assert message.payload == b"in time" and message.properties.MessageExpiryInterval < 1000
    # Larger than the client takes: it never hears of it.
    small = Client("small", MaximumPacketSize=100)
    small.subscribe("m/#", 1)
    sender.publish("m/x", "x" * 200)
    sender.publish("m/x", "fits")
    small.hears("fits")
    assigned = Client("")
    assert assigned.welcome.AssignedClientIdentifier


globals()[os.environ["SCENARIO"]]()
