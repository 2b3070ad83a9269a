"""Contracts with aiokafka and Faust: the private names, signatures and habits that connectors builds on.

A failure here after an upgrade says what to look at; the behaviour itself is tested in the other files.
"""

import ast
import asyncio
import gc
import importlib
import inspect
import re
import sys
import textwrap
import weakref
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import mode
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, codec
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, SubscriptionState, TopicPartitionState
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.sender import (
    AddPartitionsToTxnHandler,
    BaseHandler,
    Sender,
    SendProduceReqHandler,
    TxnOffsetCommitHandler,
)
from aiokafka.producer.transaction_manager import TransactionManager, TransactionState
from aiokafka.protocol.types import Bytes
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder, _DefaultRecordBatchBuilderPy
from aiokafka.record.memory_records import MemoryRecords
from faust.app.base import BootStrategy
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as stock
from faust.types import TP, ConsumerMessage
from mode.services import Service
from record_bytes import batch_of

import headrace
from headrace.connectors.fetching import take
from headrace.connectors.record_writer import Rows, SealedBatch, write_batches
from headrace.connectors.records import Record
from headrace.connectors.spans import Spans

AT = TopicPartition("t", 0)


@pytest.fixture(autouse=True)
def no_garbage_is_collected() -> Iterator[None]:
    """What other tests have left may log an error when it is collected; Python 3.11 cannot parse source meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function: Any) -> str:
    return inspect.getsource(function)


def in_loop(function: Any) -> Any:
    async def run() -> Any:
        return function()

    return asyncio.run(run())


def raw_batch(offset: int = 0, values: int = 3, **options: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 16)
    for number in range(values):
        builder.append(number, 1000 + number, b"k", b"v%d" % number, [])
    return offset.to_bytes(8, "big") + bytes(builder.build())[8:]


def test_versions_are_those_that_were_read() -> None:
    assert aiokafka.__version__.startswith("0.14.")
    assert faust.__version__.startswith("0.15.")


# fetching


def test_a_fetched_result_knows_its_records_and_moves_the_position() -> None:
    def take() -> None:
        assignment = Assignment([AT])
        state = assignment.state_value(AT)
        state.seek(1)
        records = PartitionRecords(AT, MemoryRecords(raw_batch()), None, 1, None, None, True, 0)
        result = FetchResult(AT, assignment=assignment, partition_records=records, backoff=0.1)
        assert 0 < result.calculate_backoff() <= 0.1
        result._backoff = 0
        assert result.calculate_backoff() == 0, "then it holds back no other partition"
        assert result.check_assignment(AT)
        assert result.has_more()
        assert (result._partition_records, result._assignment) == (records, assignment)
        records.next_fetch_offset = 3
        result._update_position()
        assert state.position == 3
        state.seek(7)
        assert not result.check_assignment(AT), "a seek voids what was fetched before"
        assert not result.has_more()

    in_loop(take)


def test_bytes_of_a_fetch_are_let_go_when_they_were_taken_not_when_the_collector_comes() -> None:
    def fetched() -> FetchResult:
        assignment = Assignment([AT])
        assignment.state_value(AT).seek(1)
        records = PartitionRecords(AT, MemoryRecords(raw_batch()), None, 1, None, None, True, 0)
        return FetchResult(AT, assignment=assignment, partition_records=records, backoff=0.1)

    def take_it() -> None:
        fetcher: Any = SimpleNamespace(_records={AT: fetched()}, _notify=id, _wait_consume_future=None)
        owner = weakref.ref(fetcher._records[AT]._partition_records)
        gc.disable()
        try:
            run = take(fetcher, AT, 100)
            assert run is not None
            assert [record.offset for record in run.records] == [1, 2]
            assert owner() is None
        finally:
            gc.enable()

    in_loop(take_it)


def test_records_are_read_batch_by_batch() -> None:
    records = PartitionRecords(AT, MemoryRecords(raw_batch(0) + raw_batch(3)), [(7, 2), (6, 0)], 0, None, None, True, 1)
    assert (records._tp, records._check_crcs, records._isolation_level) == (AT, True, 1)
    assert records._aborted_producers == set()
    records._consume_aborted_up_to(1)
    assert records._aborted_producers == {6}
    batch = records._records.next_batch()
    assert isinstance(batch, DefaultRecordBatch)
    assert batch.validate_crc()
    assert (batch.base_offset, batch.next_offset, batch.producer_id) == (0, 3, -1)
    assert not batch.is_control_batch
    assert not batch.is_transactional
    assert [(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in batch] == [
        (number, 1000 + number, b"k", b"v%d" % number, ()) for number in range(3)
    ]
    assert records._records.has_next()
    assert parameters(records._contains_abort_marker) == ["next_batch"]


def test_a_broken_batch_is_noticed() -> None:
    broken = bytearray(raw_batch())
    broken[-1] ^= 1
    assert not MemoryRecords(bytes(broken)).next_batch().validate_crc()


def test_the_fetcher_keeps_what_it_fetched_by_partition() -> None:
    text = source(Fetcher.__init__)
    for name in ("_records", "_wait_consume_future", "_fetch_waiters", "_closed", "_prefetch_backoff"):
        assert f"self.{name} =" in text
    text = source(Fetcher._get_actions_per_node)
    assert "if tp in self._records:" in text, "a partition that is not drained is not fetched again"
    assert "backoff = record.calculate_backoff()" in text
    assert parameters(Fetcher._create_fetch_waiter) == ["self"]
    assert parameters(Fetcher._notify) == ["self", "future"]
    assert "self._notify(waiter)" in source(Fetcher._fetch_requests_routine), "new data wakes the waiters"
    assert "tp_state.lso = lso" in source(Fetcher._proc_fetch_request)
    assert "tp_state.timestamp = now_ms" in source(Fetcher._proc_fetch_request)


def test_a_fetcher_can_be_given_another_name_for_what_it_fetched() -> None:
    """What `keep_bytes` does: a copy of one method, in which MemoryRecords means another class."""
    method = Fetcher._proc_fetch_request
    assert parameters(method) == ["self", "assignment", "node_id", "request"]
    assert method.__closure__ is None
    assert method.__globals__["MemoryRecords"] is MemoryRecords
    text = source(method)
    for part in ("records = MemoryRecords(part_data[-1])", "records.has_next()", "records.size_in_bytes() > 0"):
        assert text.count(part) == 1
    assert text.count("records.") == 2, "nothing else is asked of it"
    assert text.count("            records,\n") == 1, "and it is handed on to PartitionRecords alone"
    assert "self._proc_fetch_request(assignment, node_id, request)" in source(Fetcher._fetch_requests_routine)
    text = source(PartitionRecords._unpack_records)
    assert text.count("records.has_next()") == text.count("records.next_batch()") == 1
    assert text.count("records.") == 2
    assert Bytes.decode(BytesIO((3).to_bytes(4, "big") + b"abc")) == b"abc", "bytes, which are not copied again"


def test_aborted_transactions_are_in_the_book_of_the_records() -> None:
    records = PartitionRecords(AT, MemoryRecords(b""), [(7, 2), (6, 0)], 0, None, None, True, 1)
    assert records._aborted_transactions == [(6, 0), (7, 2)]
    assert records._aborted_producers == set()
    for type, aborts in ((0, True), (1, False)):
        marker = batch_of([Record(0, 0, bytes(3) + bytes([type]), bytes(6))])
        assert records._contains_abort_marker(MemoryRecords(marker).next_batch()) == aborts


def test_a_partition_has_a_last_stable_offset_and_a_position() -> None:
    def state() -> TopicPartitionState:
        return Assignment([AT]).state_value(AT)

    assert (in_loop(state).lso, in_loop(state).timestamp) == (None, None), "until it was fetched from"


def test_an_assignment_is_found_through_the_subscription() -> None:
    def assign() -> None:
        subscriptions = SubscriptionState()
        assert subscriptions.reassignment_in_progress
        assert subscriptions.subscription is None
        subscriptions.subscribe({"t"})
        assert subscriptions.subscription.assignment is None
        subscriptions.assign_from_subscribed({AT})
        assert not subscriptions.reassignment_in_progress
        assert subscriptions.is_assigned(AT)
        assert subscriptions.subscription.assignment.tps == {AT}
        with subscriptions.fetch_context():
            assert subscriptions.fetcher_idle_time == 0

    in_loop(assign)


def test_a_consumer_takes_its_settings_when_it_starts() -> None:
    def settings() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(group_id="g")

    consumer = in_loop(settings)
    assert consumer._fetch_max_wait_ms == 500
    assert consumer._isolation_level == "read_uncommitted"
    assert len(consumer._partition_assignment_strategy) == 1
    assert isinstance(consumer._subscription, SubscriptionState)
    assert consumer._closed is False
    consumer._closed = True
    text = source(AIOKafkaConsumer.start)
    for part in ("self._fetcher = Fetcher(", "self._coordinator = GroupCoordinator("):
        assert part in text
    for name in ("_fetch_max_wait_ms", "_isolation_level", "_partition_assignment_strategy"):
        assert f"=self.{name}," in text


def test_a_fetch_asks_for_the_wait_that_the_fetcher_has_then() -> None:
    asked = source(Fetcher._get_actions_per_node)
    assert "self._fetch_max_wait_ms," in asked


def test_when_to_fetch_is_asked_of_one_method() -> None:
    asked = source(Fetcher._fetch_requests_routine)
    assert "= self._get_actions_per_node(assignment)" in asked
    assert "timeout=timeout," in asked, "it is asked again then"
    told = source(Fetcher._get_actions_per_node)
    names = ("fetch_requests", "awaiting_reset", "backoff", "invalid_metadata", "resume_futures")
    assert "return (" + "".join(f"{name}," for name in names) + ")" in "".join(told.split()).replace(
        "return(", "return ("
    )


# groups


def test_the_coordinator_knows_its_member() -> None:
    text = source(GroupCoordinator.__init__)
    for name in ("generation", "member_id", "group_id", "coordinator_id"):
        assert f"self.{name} =" in text
    assert parameters(GroupCoordinator._send_req) == ["self", "request"]
    assert parameters(GroupCoordinator.coordinator_dead) == ["self"]
    assert inspect.iscoroutinefunction(GroupCoordinator.ensure_coordinator_known)
    assert parameters(AIOKafkaClient.coordinator_lookup) == ["self", "coordinator_type", "coordinator_key"]
    assert parameters(AIOKafkaClient.send) == ["self", "node_id", "request", "group"]


def test_errors_of_the_consumers_tasks_are_kept_for_the_next_poll() -> None:
    """Why ConsumerThread looks at them itself."""
    assert parameters(GroupCoordinator._push_error_to_user) == ["self", "exc"]
    routine = source(GroupCoordinator._GroupCoordinator__coordination_routine)
    assert routine.count("await self._push_error_to_user(exc)") == 2
    assert "self._coordination_task = create_task(self._coordination_routine())" in source(GroupCoordinator.__init__)
    assert "self._fetch_task = create_task(self._fetch_requests_routine())" in source(Fetcher.__init__)
    assert "self._consumer = self._create_consumer(" in source(stock.AIOKafkaConsumerThread.on_start)
    assert "await self._consumer.start()" in source(stock.AIOKafkaConsumerThread.on_start)
    assert "self._producer = self._new_producer()" in source(stock.Producer.on_start)


def test_a_fetcher_that_is_closed_is_cancelled_where_the_broker_is_away() -> None:
    """Why stopping a consumer expects it. When this fails, aiokafka has been mended."""
    assert "x.cancel()\n            await x\n" in source(Fetcher.close)
    assert "await asyncio.sleep(self._retry_backoff)\n            return False" in source(Fetcher._proc_fetch_request)


# transactions


def test_a_sender_looks_for_a_coordinator_again_when_a_node_is_not_ready() -> None:
    text = source(Sender._find_coordinator)
    assert "await self.client.coordinator_lookup(" in text, "by the attribute, which is put in its place"
    assert "Errors.NodeNotReadyError," in text
    assert "Errors.KafkaConnectionError" not in text, "when this fails, aiokafka has been mended"


def test_a_producer_can_be_taken_apart_while_the_broker_is_away() -> None:
    def make() -> AIOKafkaProducer:
        return AIOKafkaProducer(transactional_id="x")

    producer = in_loop(make)
    producer._closed = True
    assert producer._sender.sender_task is None
    assert producer._txn_manager._transaction_waiter is None
    assert producer._message_accumulator._batches == {}
    assert "self._drain_waiter = create_future()" in source(MessageBatch.__init__)
    assert "self._closed = True" in source(AIOKafkaProducer.stop), "also when it is cancelled: stop is called once"


def test_a_producer_has_the_parts_that_are_used() -> None:
    def make() -> AIOKafkaProducer:
        return AIOKafkaProducer(transactional_id="x", max_batch_size=900_000)

    producer = in_loop(make)
    producer._closed = True
    assert isinstance(producer._sender, Sender)
    assert isinstance(producer._txn_manager, TransactionManager)
    assert producer._sender._txn_manager is producer._txn_manager
    assert producer._txn_manager.state is TransactionState.UNINITIALIZED
    assert isinstance(producer.client, AIOKafkaClient)


def test_a_batch_is_filled_past_its_own_append() -> None:
    def fill() -> BatchBuilder:
        producer = AIOKafkaProducer(transactional_id="x", max_batch_size=900_000)
        producer._closed = True
        return producer.create_batch()

    ours, theirs = in_loop(fill), in_loop(fill)
    for number in range(3):
        ours._builder.append(number, 5, b"k", b"v", [("h", b"x")])
        theirs.append(timestamp=5, key=b"k", value=b"v", headers=[("h", b"x")])
    ours._relative_offset = 3
    ours.close()
    assert ours.record_count() == theirs.record_count() == 3
    assert ours.size() == theirs.size()
    assert bytes(ours._build()) == bytes(theirs._build())


def sealed() -> SealedBatch:
    values = Spans.of([b"v"] * 3)
    (batch,) = write_batches(Rows(Spans.none(3), values), 5, to={("t", 0): 3}, transactional=True)["t", 0]
    return batch


def test_a_sealed_batch_has_all_that_is_asked_of_a_builder() -> None:
    asked = set(re.findall(r"self\._builder\.(\w+)", source(MessageBatch)))
    asked |= set(re.findall(r"batch\._builder\.(\w+)", source(MessageAccumulator)))
    assert asked == {"append", "record_count", "closed", "close", "_set_producer_state", "_build"}
    for name in asked:
        method = getattr(SealedBatch, name)
        if name != "append":
            assert parameters(method) == parameters(getattr(BatchBuilder, name))
    sealed().append(timestamp=1, key=b"k", value=b"v", headers=[])  # by name, as MessageBatch does
    call = source(MessageBatch.append)
    assert "self._builder.append(" in call and "if metadata is None:" in call, "None: it is full"


def test_a_batch_that_is_appended_has_two_futures() -> None:
    assert parameters(MessageAccumulator._append_batch) == ["self", "builder", "tp"]
    adding = source(MessageAccumulator.add_batch)
    assert "batch = self._append_batch(builder, tp)" in adding
    assert "return asyncio.shield(batch.future)" in adding, "whose outer future may be left with an exception as well"
    failing = source(MessageBatch.failure)
    assert "self.future.set_exception(exception)" in failing
    assert "self._drain_waiter.set_exception(exception)" in failing


def test_a_batch_may_be_queued_at_once_where_send_batch_would_not_wait() -> None:
    """What send_batch and add_batch do before they append, step by step: it is asked in advance."""

    def steps(function: Any) -> list[str]:
        tree = ast.parse(textwrap.dedent(source(function))).body[0]
        assert isinstance(tree, ast.AsyncFunctionDef)
        return [" ".join(ast.unparse(step).split()) for step in tree.body if not isinstance(step, ast.Expr)]

    checked, appended = steps(AIOKafkaProducer.send_batch), steps(MessageAccumulator.add_batch)
    assert "await self.client._wait_on_metadata(topic)" in source(AIOKafkaProducer.send_batch)
    assert "self.cluster.partitions_for_topic(topic)" in source(AIOKafkaClient._wait_on_metadata)
    assert "partition in self._metadata.partitions_for_topic(topic)" in source(AIOKafkaProducer._partition)
    assert "self._metadata = self.client.cluster" in source(AIOKafkaProducer.__init__)
    assert checked == [
        "partition = self._partition(topic, partition, None, None, None, None)",
        "if self._txn_manager is not None: txn_manager = self._txn_manager if txn_manager.transactional_id is not None "
        "and (not self._txn_manager.is_in_transaction()): "
        'raise IllegalOperation("Can\'t send messages while not in transaction")',
        "tp = TopicPartition(topic, partition)",
        "future = await self._message_accumulator.add_batch(batch, tp, self._request_timeout_ms / 1000)",
        "return future",
    ]
    assert appended == [
        "if self._closed: raise ProducerClosed()",
        "if self._exception is not None: raise copy.copy(self._exception)",
        "start = time.monotonic()",
        "while timeout > 0: pending = self._batches.get(tp) if pending: await pending[-1].wait_drain(timeout=timeout) "
        "timeout -= time.monotonic() - start else: batch = self._append_batch(builder, tp) "
        "return asyncio.shield(batch.future)",
        "raise KafkaTimeoutError()",
    ]
    assert "self.future = create_future()" in source(MessageBatch.__init__)
    assert "return batch" in source(MessageAccumulator._append_batch)


def test_a_batch_is_sent_as_it_is() -> None:
    """What is between send_batch and the request looks at nothing but the methods of the builder."""
    assert not re.search(r"\bbatch\.", source(AIOKafkaProducer.send_batch))
    assert not re.search(
        r"\bbuilder\.", source(MessageAccumulator.add_batch) + source(MessageAccumulator._append_batch)
    )
    assert "return self._builder._build()" in source(MessageBatch.get_data_buffer)
    assert "(tp.partition, batch.get_data_buffer())" in source(SendProduceReqHandler.create_request)
    data = sealed()._build()
    assert isinstance(data, memoryview)
    assert Bytes.encode(data) == Bytes.encode(bytes(data)), "the request takes it"


def test_a_batch_gets_its_producer_when_it_is_sent_first_and_keeps_it() -> None:
    """A batch that is sent again must have the same number, or it could be there twice."""
    text = source(MessageAccumulator._pop_batch)
    assert "not_retry = batch.retry_count == 0" in text
    assert "if self._txn_manager is not None and not_retry:" in text
    assert "self._txn_manager.increment_sequence_number(batch.tp, batch.record_count)" in text

    def send() -> None:
        manager = TransactionManager("x", 1000)
        manager.set_pid_and_epoch(77, 3)
        manager.begin_transaction()
        accumulator = MessageAccumulator(SimpleNamespace(), 1 << 20, 0, 30, txn_manager=manager)
        batches = []
        for _ in range(2):
            accumulator._append_batch(sealed(), AT)
            batch = accumulator._pop_batch(AT)
            first = bytes(batch.get_data_buffer())
            accumulator.reenqueue(batch)
            again = accumulator._pop_batch(AT)
            assert bytes(again.get_data_buffer()) == first
            batches.append(MemoryRecords(first).next_batch())
            batch.done(0, -1)
        for number, batch in enumerate(batches):
            assert batch.validate_crc()
            assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (77, 3, 3 * number)

    in_loop(send)


def test_records_are_compressed_by_functions_that_can_be_called() -> None:
    text = source(_DefaultRecordBatchBuilderPy._maybe_compress)
    for number, name in enumerate(("gzip", "snappy", "lz4", "zstd"), 1):
        encode, decode = getattr(codec, f"{name}_encode"), getattr(codec, f"{name}_decode")
        assert decode(encode(b"x" * 1000)) == b"x" * 1000
        assert getattr(DefaultRecordBatch, f"CODEC_{name.upper()}") == number
        assert f"compressed = {name}_encode(data)" in text


def test_offsets_are_committed_by_a_method_that_can_be_put_in_its_place() -> None:
    assert "self._do_txn_offset_commit(offsets, group_id)" in source(Sender._maybe_do_transactional_request)
    assert parameters(Sender._do_txn_offset_commit) == ["self", "offsets", "group_id"]
    assert parameters(Sender._find_coordinator) == ["self", "coordinator_type", "coordinator_key"]
    assert parameters(Sender._coordinator_dead) == ["self", "coordinator_type"]
    assert parameters(TxnOffsetCommitHandler.__init__) == ["self", "sender", "offsets", "group_id"]
    assert parameters(BaseHandler.do) == ["self", "node_id"]
    sender = SimpleNamespace(_retry_backoff=0.25)
    handler = TxnOffsetCommitHandler(sender, {}, "g")
    assert (handler._sender, handler._offsets, handler._group_id, handler._default_backoff) == (sender, {}, "g", 0.25)


def test_partitions_are_added_by_a_method_that_can_be_put_in_its_place() -> None:
    text = source(Sender._maybe_do_transactional_request)
    assert "self._do_add_partitions_to_txn(tps)" in text
    assert text.index("partitions_to_add") < text.index("consumer_group_to_add"), (
        "the outputs need not wait for the group"
    )
    assert parameters(Sender._do_add_partitions_to_txn) == ["self", "tps"]
    assert parameters(AddPartitionsToTxnHandler.__init__) == ["self", "sender", "topic_partitions"]
    handled = source(AddPartitionsToTxnHandler.handle_response)
    assert handled.count("return BACKOFF_OVERRIDE") == 1, "after ConcurrentTransactions alone"
    assert "retry_backoff = self.handle_response(resp)" in source(BaseHandler.do)


def test_a_refused_offset_commit_leaves_a_transaction_that_can_be_aborted() -> None:
    def refuse() -> None:
        manager = TransactionManager("x", 1000)
        manager.set_pid_and_epoch(1, 0)
        manager.begin_transaction()
        manager.maybe_add_partition_to_txn(AT)
        manager.partition_added(AT)
        waiting = manager.add_offsets_to_txn({AT: SimpleNamespace(offset=1)}, "g")
        assert manager._pending_txn_offsets[0][2] is waiting
        manager._pending_txn_offsets.popleft()
        assert manager.state is TransactionState.IN_TRANSACTION
        manager.aborting_transaction()
        assert not manager.is_empty_transaction(), "so that the abort is really sent"

    in_loop(refuse)


def test_an_abortable_error_makes_aiokafka_forget_what_to_abort() -> None:
    """Why a producer is spent after an error. When this fails, aiokafka has been mended."""

    def forget() -> None:
        manager = TransactionManager("x", 1000)
        manager.set_pid_and_epoch(1, 0)
        manager.begin_transaction()
        manager.maybe_add_partition_to_txn(AT)
        manager.partition_added(AT)
        manager.error_transaction(ValueError("refused"))
        manager._transaction_waiter.exception()
        manager.aborting_transaction()
        assert manager.is_empty_transaction()

    in_loop(forget)


# Faust


def test_fausts_consumer_thread_calls_what_is_overridden() -> None:
    assert "self._create_worker_consumer(transport)" in source(stock.AIOKafkaConsumerThread._create_consumer)
    assert "self._thread = self._new_consumer_thread()" in source(ThreadDelegateConsumer.__init__)
    assert parameters(stock.AIOKafkaConsumerThread.call_thread) == ["self", "fun", "args", "kwargs"]


def test_fausts_consumer_calls_what_is_overridden() -> None:
    from faust.app import App
    from faust.tables.recovery import Recovery
    from faust.transport.consumer import Fetcher as Fetching

    assert "consumer._drain_messages(self)" in source(Fetching._fetcher.fun)
    assert "perform_seek()" in source(Recovery.on_recovery_completed)
    assert "perform_seek()" in source(Recovery._resume_streams)
    assert "timeout=self.app.conf.broker_request_timeout" in source(Recovery._resume_streams)
    assert "self._new_offset(tp)" in source(Consumer._filter_committable_offsets)
    assert "self.verify_event_path(now, tp)" in source(Consumer.verify_all_partitions_active)
    assert "await T(self._consumer_wait_empty)(consumer, on_timeout)" in source(App._on_partitions_revoked)
    assert "await self._consumer_wait_empty(consumer, self.log)" in source(App._stop_consumer)
    assert "self.conf.broker_consumer, self" in source(App._new_transport)


@pytest.mark.parametrize(
    "name",
    [
        "_active_partitions",
        "_paused_partitions",
        "_unacked_messages",
        "_waiting_for_ack",
        "_acked",
        "_acked_index",
        "_gap",
        "_read_offset",
        "_committed_offset",
        "_on_partitions_revoked",
        "can_resume_flow",
        "suspend_flow",
        "flow_active",
    ],
)
def test_fausts_consumer_has_the_books_that_are_kept(name: str) -> None:
    text = source(sys.modules[Consumer.__module__])  # of a class alone it would be parsed, which may end in SystemError
    assert f"self.{name} =" in text or f"    {name}:" in text


def test_an_ack_reaches_the_consumer_when_nobody_else_holds_the_message() -> None:
    acked: list[object] = []
    message = ConsumerMessage("t", 0, 4, 1.0, 0, None, None, b"v", None, tp=TP("t", 0), generation_id=3)
    consumer = SimpleNamespace(ack=acked.append)
    message.incref()
    message.ack(consumer)
    assert acked == [message]
    assert (message.generation_id, message.acked) == (3, False), "the consumer says when it is acked"


def test_a_schema_is_compiled_once_into_a_decoder() -> None:
    assert parameters(faust.Schema.compile)[:2] == ["self", "app"]
    assert parameters(faust.App.create_event) == ["self", "key", "value", "headers", "message"]


def test_an_assignors_protocol_is_range() -> None:
    from aiokafka.coordinator.assignors.range import RangePartitionAssignor

    assert RangePartitionAssignor.name == "range"
    text = source(stock.AIOKafkaConsumerThread._create_worker_consumer)
    assert "fetch_max_wait_ms=1500," in text, "when Faust has a setting for it, use that"


def test_fausts_services_have_what_is_called_and_overridden() -> None:
    assert "return self._consumer" in source(stock.AIOKafkaConsumerThread._ensure_consumer)
    assert "return self._producer" in source(stock.Producer._ensure_producer)
    assert "tps = self._active_partitions" in source(Consumer._get_active_partitions)
    assert "self._stopped = self._new_stopped_event()" in source(Service), "also of the fetcher"
    assert parameters(Service._crash) == ["self", "reason"]
    assert "node._crash(reason)" in source(Service._crash), "what is beneath the app crashes by this name"
    assert "self._signal_stop_time = self.loop.time()" in source(mode.Worker)
    assert inspect.iscoroutinefunction(mode.Worker._sentinel_task)
    assert "self._sentinel_task()" in source(mode.Worker), "the second of sleep at the end"
    assert parameters(BootStrategy._chain) == ["self", "arguments"]
    assert "self._chain(" in source(BootStrategy.server)


def test_a_consumer_lets_go_of_its_client_and_of_the_iterator_that_is_never_used() -> None:
    assert "self._client = AIOKafkaClient(" in source(AIOKafkaConsumer.__init__)
    records = PartitionRecords(AT, MemoryRecords(b""), None, 0, None, None, True, 0)
    assert inspect.isgenerator(records._records_iterator)
    assert "next(self._records_iterator)" in source(PartitionRecords)


LIBRARIES = ("aiokafka", "faust", "mode")
THEIRS = "".join(
    path.read_text() for name in LIBRARIES for path in Path(sys.modules[name].__file__ or "").parent.rglob("*.py")
)
PINNED = Path(__file__).read_text()
TOUCHES = {  # parsed while tests are collected: ast.parse of Python 3.11 fails where a collection of garbage logs an error
    path: ast.parse(path.read_text())
    for path in sorted(Path(headrace.__file__).parent.glob("*/*.py"))
    if re.search(rf"^(from|import) ({'|'.join(LIBRARIES)})\b", path.read_text(), re.M)
}


@pytest.mark.parametrize("path", TOUCHES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_private_name_of_theirs_that_is_touched_is_pinned_in_this_file(path: Path) -> None:
    nodes = list(ast.walk(TOUCHES[path]))
    places = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    ours = {at.attr for at in places if isinstance(at.ctx, ast.Store) and ast.unparse(at.value) == "self"}
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    touched = {at.attr for at in places} - ours - defined - {"_replace", "_asdict", "_exit"}
    classes = vars(importlib.import_module(f"headrace.{path.parent.name}.{path.stem}")).values()
    bases = {base for one in classes if inspect.isclass(one) for base in one.__mro__}
    theirs = [base for base in bases if base.__module__.split(".")[0] in LIBRARIES]
    overridden = {name for name in defined if re.match("_[a-z]", name) and any(name in vars(base) for base in theirs)}
    for name in sorted(touched | overridden):
        assert re.search(rf"\b{name}\b", THEIRS), f"{path.name} touches {name}, which is no name of theirs"
        assert re.search(rf"\b{name}\b", PINNED), f"{path.name} touches {name}, which no test in this file pins"


def test_the_files_that_touch_their_names_are_found() -> None:
    assert {"fetching", "reading", "transport", "transactions", "worker"} <= {path.stem for path in TOUCHES}
