/* SPDX-License-Identifier: Apache-2.0 */
/* The watch over a running capture: when loss becomes an event, what a step of the clock does to flows, events and counters. */
#include "engine/capture.h"

#include "fake_clock.h"
#include "live_link.h"
#include "trace_file.h"

enum { LOOK_NS = 250000000 };

/* ---- loss, in numbers */

static struct loss_watch watch;
static struct loss_report report;
static uint64_t now;

static void watch_from(uint64_t threshold) {
    now = 10ull * SECOND;
    loss_watch_init(&watch, threshold, now);
}

static bool look_after(uint64_t ns, uint64_t dropped_kernel) {
    struct capture_stats stats = {.dropped_kernel = dropped_kernel};
    return loss_watch_look(&watch, &stats, now += ns, false, &report);
}

static void any_loss_is_told_at_the_next_look_when_the_threshold_is_0(void) {
    watch_from(0);
    CHECK(!look_after(LOOK_NS, 0));
    CHECK(look_after(LOOK_NS, 1));
    CHECK_EQUAL(1, report.lost);
    CHECK(!look_after(5ull * SECOND, 1));
}

static void more_than_the_threshold_within_a_second_is_told_and_less_never(void) {
    watch_from(100);
    uint64_t lost = 0;
    for (int i = 0; i < 40; i++) /* 80 a second, for ten */
        CHECK(!look_after(LOOK_NS, lost += 20));
    CHECK(!look_after(LOOK_NS, lost));
    CHECK(look_after(LOOK_NS, lost += 61)); /* with the 40 that went before within the second: 101 */
    CHECK_EQUAL(lost, report.lost);         /* all since the start: nothing was told before */
    watch_from(100);
    CHECK(!look_after(LOOK_NS, 100));
    CHECK(look_after(LOOK_NS, 101));
}

static void reports_lie_a_second_apart_and_none_is_forgotten_in_between(void) {
    watch_from(0);
    CHECK(look_after(LOOK_NS, 10));
    CHECK(loss_watch_due(&watch) == UINT64_MAX);
    CHECK(!look_after(LOOK_NS, 15));
    uint64_t due = loss_watch_due(&watch);
    CHECK_EQUAL(now - LOOK_NS + SECOND, due);
    CHECK(!look_after(LOOK_NS, 15));
    CHECK(!look_after(LOOK_NS, 15));
    CHECK(look_after(due - now, 18));
    CHECK_EQUAL(8, report.lost);
    watch_from(50);
    CHECK(look_after(LOOK_NS, 51));
    CHECK(!look_after(LOOK_NS, 102));
    CHECK(look_after(2ull * SECOND, 102)); /* long out of the second's window, but it was more than the threshold */
    CHECK_EQUAL(51, report.lost);
}

static void the_last_look_tells_what_the_last_second_lost(void) {
    struct capture_stats stats = {.dropped_nic = 1, .dropped_kernel = 2};
    watch_from(0);
    CHECK(look_after(LOOK_NS, 1));
    stats.dropped_kernel = 4;
    CHECK(loss_watch_look(&watch, &stats, now + 1000, true, &report));
    CHECK_EQUAL(4, report.lost);
    CHECK(!loss_watch_look(&watch, &stats, now + 2000, true, &report));
    watch_from(10);
    CHECK(!loss_watch_look(&watch, &stats, now + 1000, true, &report));
}

static void every_place_is_named_with_its_count(void) {
    struct capture_stats stats = {.dropped_nic = 1,
                                  .dropped_kernel = 2,
                                  .dropped_user = 3,
                                  .packet_ring_dropped = 4,
                                  .flows_ended = {[CAPTURE_FLOW_END_RESOURCES] = 5, [CAPTURE_FLOW_END_IDLE] = 99}};
    char text[256];
    watch_from(0);
    CHECK(loss_watch_look(&watch, &stats, now + LOOK_NS, false, &report));
    CHECK_EQUAL(15, report.lost);
    loss_report_describe(&report, text, sizeof(text));
    CHECK_TEXT("lost: 1 frames by the network card, 2 frames in the kernel's ring, 3 frames in the core, 4 frames in the packet "
               "ring, 5 flow records evicted from the full table",
               text);
    stats.dropped_kernel = 1002;
    CHECK(loss_watch_look(&watch, &stats, now + 2ull * SECOND, false, &report));
    loss_report_describe(&report, text, sizeof(text));
    CHECK_TEXT("lost: 1000 frames in the kernel's ring", text);
}

/* ---- captures */

static struct capture_event event_after(capture_t *capture, uint64_t sequence, uint32_t type) {
    struct capture_event event;
    CHECK_EQUAL(1, capture_next_event(capture, sequence, &event));
    CHECK_EQUAL(sequence + 1, event.sequence);
    if (event.type != type)
        fprintf(stderr, "%s\n", event.message);
    CHECK_EQUAL(type, event.type);
    return event;
}

static void no_event_after(capture_t *capture, uint64_t sequence) {
    struct capture_event event;
    if (capture_next_event(capture, sequence, &event))
        fprintf(stderr, "%s\n", event.message);
    CHECK_EQUAL(0, capture_next_event(capture, sequence, &event));
}

/* Reads all there is: every end at or after its start, and the packets of both directions. */
static uint64_t packets_of_sound_records(capture_t *capture) {
    capture_flow_reader_t *reader = reader_of(capture, (struct capture_reader_config){0});
    static uint64_t starts[4096], ends[4096], forward[4096], reverse[4096];
    struct capture_flow_columns columns = {
        .start_time_ns = (int64_t *)starts, .end_time_ns = (int64_t *)ends, .fwd_packets = forward, .rev_packets = reverse};
    struct capture_batch_info info;
    uint64_t packets = 0;
    do {
        CHECK(capture_reader_read_columns(reader, &columns, 4096, &info) >= 0);
        CHECK_EQUAL(0, info.lost);
        for (uint32_t i = 0; i < info.records; i++) {
            CHECK((int64_t)ends[i] >= (int64_t)starts[i]);
            packets += forward[i] + reverse[i];
        }
    } while (!info.end);
    capture_reader_close(reader);
    return packets;
}

/* 20 flows, 3,000 packets, whose clock is set by hours back and forth in the middle. */
static void whatever_the_frames_clock_does_no_flow_ends_before_it_starts(void) {
    static const int64_t hours[] = {0, -2, 3, -26, 24 * 365, -1, 0};
    struct trace_file trace = trace_new(101);
    int64_t ts = 1700000000 * (int64_t)SECOND;
    for (uint32_t i = 0; i < 3000; i++) {
        if (i % 430 == 0)
            ts += hours[i / 430] * 3600 * (int64_t)SECOND;
        struct bytes frame = {0};
        add_ipv4(&frame, 0x0a000000 + i % 20, 0xac100001, 17, 8, i, 0);
        add_udp(&frame, 4000, 53, 0);
        trace_packet(&trace, (uint64_t)(ts += 1000000), &frame);
    }
    for (uint32_t idle_s = 0; idle_s <= 30; idle_s += 10) {
        capture_t *capture = capture_of(&trace, (struct capture_options){.idle_s = idle_s, .active_s = idle_s * 2});
        start(capture);
        while (capture_poll(capture, 100) > 0)
            continue;
        capture_stop(capture, true);
        CHECK_EQUAL(3000, packets_of_sound_records(capture));
        struct capture_stats stats = stats_of(capture);
        CHECK(stats.time_regressions > 0 || idle_s);
        CHECK_EQUAL(0, stats.clock_steps); /* a file has no clock */
        no_event_after(capture, 0);
        capture_destroy(capture);
    }
    trace_forget(&trace);
}

/* More flows than fit, from a file: records are evicted, and that is told, at the latest at the stop. */
static void records_that_a_full_table_evicts_are_told_of_files_too(void) {
    struct trace_file trace = trace_of_flows(80000, 90000);
    capture_t *capture = capture_of(&trace, (struct capture_options){.log_records = 1 << 17});
    start(capture);
    while (capture_poll(capture, 100) > 0)
        continue;
    capture_stop(capture, true);
    struct capture_stats stats = stats_of(capture);
    CHECK(stats.flows_ended[CAPTURE_FLOW_END_RESOURCES] > 0);
    struct capture_event event;
    uint64_t told = 0, sequence = 0;
    while (capture_next_event(capture, sequence, &event)) {
        CHECK_EQUAL(CAPTURE_EVENT_LOSS, event.type);
        CHECK(strstr(event.message, " flow records evicted from the full table") != NULL);
        told += event.value;
        sequence = event.sequence;
    }
    CHECK_EQUAL(stats.flows_ended[CAPTURE_FLOW_END_RESOURCES], told);
    capture_destroy(capture);
    trace_forget(&trace);
}

/* A live capture without workers, with the fake clocks in place of the machine's. */
static capture_t *live_capture(uint32_t timestamp_source, bool faked) {
    struct capture_config config = config_for("jarvis0");
    struct capture_flow_config flow_config = {
        .struct_size = sizeof(flow_config), .max_flows = 4096, .idle_timeout_ns = 30ull * SECOND};
    struct capture_error_info error = {0};
    capture_t *capture;
    config.timestamp_source = timestamp_source;
    config.backend = "afpacket";
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    CHECK_EQUAL(CAPTURE_OK, capture_flow_enable(capture, &flow_config, &error));
    if (faked)
        capture->monitor.clock.system = &fake_system;
    return capture;
}

static void send_and_wait(capture_t *capture, int sender, uint64_t metered) {
    for (int i = 0; i < 10; i++)
        send_frame(sender, 100, 4000, 5000, -1);
    while (stats_of(capture).metered < metered)
        capture_poll(capture, 20);
}

/* The frames' times are the kernel's, carried over to a card's clock that is set by hours. */
static void a_clock_that_is_set_by_hours_is_told_each_time_and_no_flow_ends_before_it_starts(void) {
    static const int64_t steps[] = {3 * 3600 * FAKE_SECOND, -5 * 3600 * FAKE_SECOND, 7200 * FAKE_SECOND};
    fake_reset();
    fake.tick_ns = 0;
    fake.timex.tai = 0;
    fake.card_offset_ns = 3600 * FAKE_SECOND;
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_PTP, true);
    uint64_t before = now_ns(CLOCK_REALTIME);
    start(capture);
    int sender = sender_on("jarvis1");
    send_and_wait(capture, sender, 10);
    struct capture_flow flow;
    struct capture_flow_query query = {.limit = 1};
    CHECK_EQUAL(1, capture_flow_get_all(capture, &query, &flow, NULL, NULL));
    CHECK(flow.start_time_ns >= before + 3600ull * SECOND && flow.end_time_ns <= now_ns(CLOCK_REALTIME) + 3600ull * SECOND);
    for (uint64_t i = 0; i < 3; i++) {
        fake_advance(FAKE_SECOND);
        fake.card_offset_ns += steps[i];
        monitor_look(capture, false);
        struct capture_event event = event_after(capture, i, CAPTURE_EVENT_CLOCK_STEP);
        CHECK_EQUAL(steps[i], event.delta);
        CHECK(strstr(event.message, steps[i] < 0 ? "PTP clock was set back by 18000.000 s" : "PTP clock was set forward by ") !=
              NULL);
        CHECK_EQUAL(i + 1, stats_of(capture).clock_steps);
        send_and_wait(capture, sender, 10 * (i + 2));
    }
    no_event_after(capture, 3);
    close(sender);
    capture_stop(capture, true);
    CHECK_EQUAL(40, packets_of_sound_records(capture));
    CHECK(stats_of(capture).flows_total > 1); /* set back by hours: no flow goes on over that */
    capture_destroy(capture);
    CHECK_EQUAL(0, fake.files_open);
}

static void the_systems_clock_being_set_is_told_and_counted(void) {
    struct capture_clock_info clock;
    fake_reset();
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_DEFAULT, true);
    start(capture);
    fake_advance(LOOK_NS);
    monitor_look(capture, false);
    no_event_after(capture, 0);
    fake.wall_ns -= 1500 * FAKE_SECOND / 1000;
    monitor_look(capture, false);
    struct capture_event event = event_after(capture, 0, CAPTURE_EVENT_CLOCK_STEP);
    CHECK_EQUAL(-1500000000, event.delta);
    CHECK_TEXT("the system's clock was set back by 1.500 s", event.message);
    CHECK_EQUAL(1, stats_of(capture).clock_steps);
    fake_advance(2 * FAKE_SECOND);
    fake.wall_ns += FAKE_SECOND;
    CHECK_EQUAL(CAPTURE_OK, capture_get_clock(capture, &clock)); /* nobody moved the capture: asking looks */
    CHECK_EQUAL(CAPTURE_TIMESTAMP_KERNEL, clock.source);
    CHECK_EQUAL(2, clock.steps);
    CHECK_EQUAL(FAKE_SECOND, event_after(capture, 1, CAPTURE_EVENT_CLOCK_STEP).delta);
    capture_stop(capture, true);
    fake.wall_ns += FAKE_SECOND;
    CHECK_EQUAL(CAPTURE_OK, capture_get_clock(capture, &clock));
    CHECK_EQUAL(2, clock.steps);
    capture_destroy(capture);
}

static void losing_and_finding_synchronisation_are_events_under_ntp(void) {
    fake_reset();
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_NTP, true);
    start(capture);
    fake.timex.status = STA_UNSYNC;
    monitor_look(capture, false);
    CHECK_EQUAL(0, event_after(capture, 0, CAPTURE_EVENT_CLOCK_SYNC).value);
    monitor_look(capture, false);
    no_event_after(capture, 1);
    fake.timex.status = 0;
    monitor_look(capture, false);
    struct capture_event event = event_after(capture, 1, CAPTURE_EVENT_CLOCK_SYNC);
    CHECK_EQUAL(1, event.value);
    CHECK_TEXT("the system's clock is synchronised again", event.message);
    capture_destroy(capture);
    fake_reset(); /* without ntp nobody asked for it */
    capture = live_capture(CAPTURE_TIMESTAMP_KERNEL, true);
    start(capture);
    fake.timex.status = STA_UNSYNC;
    monitor_look(capture, false);
    no_event_after(capture, 0);
    capture_destroy(capture);
}

static void a_capture_that_is_polled_is_looked_at_by_itself(void) {
    fake_reset();
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_DEFAULT, true);
    struct capture_event event;
    start(capture);
    fake.wall_ns += FAKE_SECOND;
    uint64_t until = now_ns(CLOCK_MONOTONIC) + 20ull * SECOND;
    while (!capture_next_event(capture, 0, &event) && now_ns(CLOCK_MONOTONIC) < until)
        capture_poll(capture, 100);
    CHECK_EQUAL(CAPTURE_EVENT_CLOCK_STEP, event_after(capture, 0, CAPTURE_EVENT_CLOCK_STEP).type);
    capture_destroy(capture);
}

static void check_refused_at_start(const char *interface, uint32_t source, int code, const char *words) {
    struct capture_config config = config_for(interface);
    struct capture_error_info error = {0};
    capture_t *capture;
    config.timestamp_source = source;
    CHECK_EQUAL(CAPTURE_OK, capture_init(&config, &capture, &error));
    for (int i = 0; i < 2; i++) { /* the second time alike: nothing was left behind */
        CHECK_EQUAL(code, capture_start(capture, &error));
        CHECK_TEXT("timestamp_source", error.field);
        CHECK(strstr(error.message, words) != NULL);
    }
    CHECK(!capture->sources[0]->queues[0].backend);
    capture_destroy(capture);
}

static void an_interface_with_another_cards_clock_is_not_added_to_a_ptp_capture(void) {
    fake_reset();
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_PTP, true);
    struct capture_error_info error = {0};
    start(capture);
    fake.phc_index = 6;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_add_interface(capture, "jarvis1", &error));
    CHECK_TEXT("timestamp_source", error.field);
    CHECK(strstr(error.message, "interface jarvis1 has another PTP hardware clock than the first") != NULL);
    fake.phc_index = 5;
    CHECK_EQUAL(CAPTURE_OK, capture_add_interface(capture, "jarvis1", &error));
    capture_destroy(capture);
}

/* The machine's own clocks. */
static void what_this_machine_has_not_is_refused_at_the_start(void) {
    check_refused_at_start("jarvis0", CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_INVALID, "interface jarvis0 has no PTP hardware clock");
    check_refused_at_start("lo", CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_INVALID, "interface lo has no PTP hardware clock");
    struct timex timex = {0};
    bool synchronised = adjtimex(&timex) != TIME_ERROR && !(timex.status & STA_UNSYNC);
    if (!synchronised) {
        check_refused_at_start("jarvis0", CAPTURE_TIMESTAMP_NTP, CAPTURE_ERR_INVALID, "the system clock is not synchronised");
        return;
    }
    struct capture_clock_info clock;
    capture_t *capture = live_capture(CAPTURE_TIMESTAMP_NTP, false);
    start(capture);
    CHECK_EQUAL(CAPTURE_OK, capture_get_clock(capture, &clock));
    CHECK(clock.synchronised && clock.error_bound_ns < UINT64_MAX);
    capture_destroy(capture);
}

int main(void) {
    RUN(any_loss_is_told_at_the_next_look_when_the_threshold_is_0);
    RUN(more_than_the_threshold_within_a_second_is_told_and_less_never);
    RUN(reports_lie_a_second_apart_and_none_is_forgotten_in_between);
    RUN(the_last_look_tells_what_the_last_second_lost);
    RUN(every_place_is_named_with_its_count);
    RUN(whatever_the_frames_clock_does_no_flow_ends_before_it_starts);
    RUN(records_that_a_full_table_evicts_are_told_of_files_too);
    int obstacle = prepare_link();
    if (obstacle)
        return obstacle;
    RUN(a_clock_that_is_set_by_hours_is_told_each_time_and_no_flow_ends_before_it_starts);
    RUN(the_systems_clock_being_set_is_told_and_counted);
    RUN(losing_and_finding_synchronisation_are_events_under_ntp);
    RUN(a_capture_that_is_polled_is_looked_at_by_itself);
    RUN(an_interface_with_another_cards_clock_is_not_added_to_a_ptp_capture);
    RUN(what_this_machine_has_not_is_refused_at_the_start);
    return 0;
}
