/* SPDX-License-Identifier: Apache-2.0 */
/* Clock sources over clocks of the test's own: what is read, what is refused, what counts as a step. */
#include "fake_clock.h"

enum { TAI_S = 37 };

static struct clock_source source;

static struct capture_config config_of(uint32_t timestamp_source) {
    return (struct capture_config){
        .struct_size = sizeof(struct capture_config), .interface = "eth0", .timestamp_source = timestamp_source};
}

static int start_source(uint32_t timestamp_source, struct capture_error_info *error) {
    struct capture_config config = config_of(timestamp_source);
    clock_source_init(&source, &fake_system, &config, true);
    return clock_source_start(&source, &config, "afpacket", error);
}

static void started(uint32_t timestamp_source) {
    struct capture_error_info error = {0};
    int code = start_source(timestamp_source, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
}

static void refused(uint32_t timestamp_source, int code, const char *words) {
    struct capture_error_info error = {0};
    CHECK_EQUAL(code, start_source(timestamp_source, &error));
    CHECK_TEXT("timestamp_source", error.field);
    if (!strstr(error.message, words))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, words) != NULL);
    CHECK_EQUAL(0, fake.files_open);
    clock_source_destroy(&source);
}

static void over(void) {
    clock_source_destroy(&source);
    CHECK_EQUAL(0, fake.files_open);
}

static struct capture_clock_info info(void) {
    struct capture_clock_info out;
    clock_source_info(&source, &out);
    return out;
}

static struct clock_news look(void) {
    struct clock_news news;
    clock_source_look(&source, &news);
    return news;
}

/* ---- steps */

static void a_step_is_told_with_its_sign_and_a_slew_is_none(void) {
    struct step_watch watch = {0};
    int64_t step = 0, distance = 1700000000 * FAKE_SECOND;
    uint64_t now = FAKE_SECOND;
    CHECK(!step_watch_look(&watch, distance, 0, now, &step)); /* the first: nothing to compare with */
    for (int i = 0; i < 1000; i++) {                          /* 500 ppm, four looks a second */
        now += 250000000;
        distance += 125000;
        CHECK(!step_watch_look(&watch, distance, 50000, now, &step));
    }
    static const int64_t steps[] = {100600000, -100600000, 3600 * FAKE_SECOND, -7200 * FAKE_SECOND};
    for (int i = 0; i < 4; i++) {
        now += 250000000;
        distance += steps[i];
        CHECK(step_watch_look(&watch, distance, 0, now, &step));
        CHECK(step - steps[i] < 1000000 && steps[i] - step < 1000000);
        CHECK(!step_watch_look(&watch, distance, 0, now + 1000, &step)); /* once */
    }
}

static void a_step_made_in_small_ones_within_a_second_is_one_and_over_many_seconds_none(void) {
    struct step_watch watch = {0};
    int64_t step = 0, distance = 0;
    uint64_t now = FAKE_SECOND;
    int told = 0;
    step_watch_look(&watch, distance, 0, now, &step);
    for (int i = 0; i < 3; i++)
        told += step_watch_look(&watch, distance += 45000000, 0, now += 250000000, &step);
    CHECK_EQUAL(1, told);
    CHECK_EQUAL(135000000, step);
    for (int i = 0; i < 10; i++)
        CHECK(!step_watch_look(&watch, distance += 45000000, 0, now += FAKE_SECOND, &step));
}

static void what_the_measurement_itself_may_err_is_no_step(void) {
    struct step_watch watch = {0};
    int64_t step;
    step_watch_look(&watch, 0, 0, FAKE_SECOND, &step);
    CHECK(!step_watch_look(&watch, 150000000, 60000000, 2 * FAKE_SECOND - 1, &step));
}

/* ---- sources */

static void the_kernels_clock_is_the_systems(void) {
    fake_reset();
    started(CAPTURE_TIMESTAMP_DEFAULT);
    CHECK_EQUAL(CAPTURE_TIMESTAMP_KERNEL, info().source);
    CHECK_EQUAL(0, info().offset_ns);
    CHECK_EQUAL(0, info().error_bound_ns);
    CHECK_TEXT("the system's clock", info().detail);
    CHECK(!info().synchronised);
    CHECK_EQUAL(0, fake.asked[0] + fake.asked[1] + fake.asked[2]);
    over();
}

static void files_have_no_clock(void) {
    fake_reset();
    struct capture_config config = {.struct_size = sizeof(config)};
    clock_source_init(&source, &fake_system, &config, false);
    CHECK_EQUAL(CAPTURE_OK, clock_source_start(&source, &config, "file", NULL));
    fake.wall_ns += 3600 * FAKE_SECOND;
    CHECK_EQUAL(0, look().system_step_ns);
    CHECK_EQUAL(CAPTURE_TIMESTAMP_DEFAULT, info().source);
    CHECK_EQUAL(0, info().steps);
    CHECK(info().error_bound_ns == UINT64_MAX);
    over();
}

static void ntp_tells_offset_bound_and_synchronisation(void) {
    fake_reset();
    started(CAPTURE_TIMESTAMP_NTP);
    struct capture_clock_info clock = info();
    CHECK_EQUAL(CAPTURE_TIMESTAMP_NTP, clock.source);
    CHECK(clock.synchronised);
    CHECK_EQUAL(-250000, clock.offset_ns); /* microseconds without STA_NANO */
    CHECK_EQUAL(1500000, clock.error_bound_ns);
    fake.timex.status = STA_NANO;
    CHECK(!look().sync_changed);
    CHECK_EQUAL(-250, info().offset_ns);
    fake.timex.status = STA_UNSYNC;
    struct clock_news news = look();
    CHECK(news.sync_changed && !news.in_sync && !info().synchronised);
    CHECK(!look().sync_changed);
    fake.timex.status = 0;
    news = look();
    CHECK(news.sync_changed && news.in_sync && info().synchronised);
    fake.adjtimex_state = TIME_ERROR;
    news = look();
    CHECK(news.sync_changed && !news.in_sync);
    CHECK_EQUAL(0, atomic_load(&source.applied_ns));
    over();
}

static void ntp_is_refused_without_synchronisation(void) {
    fake_reset();
    fake.timex.status = STA_UNSYNC;
    fake.timex.maxerror = 16000000;
    refused(CAPTURE_TIMESTAMP_NTP, CAPTURE_ERR_INVALID,
            "not synchronised (adjtimex: STA_UNSYNC or TIME_ERROR, maximum error 16.000 s)");
    fake_reset();
    fake.adjtimex_state = TIME_ERROR;
    refused(CAPTURE_TIMESTAMP_NTP, CAPTURE_ERR_INVALID, "accepted are 0 (default) and 1 (kernel)");
    fake.adjtimex_state = -1;
    refused(CAPTURE_TIMESTAMP_NTP, CAPTURE_ERR_BACKEND, "adjtimex(2) is not allowed here");
}

static void ptp_is_refused_without_a_clock_that_can_be_compared(void) {
    fake_reset();
    fake.phc_index = -1;
    refused(CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_INVALID, "interface eth0 has no PTP hardware clock, accepted are 0 (default)");
    fake_reset();
    fake.open_error = EACCES;
    refused(CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_PERMISSION,
            "/dev/ptp5 cannot be opened: Permission denied (the capture needs read");
    fake.open_error = ENOENT;
    refused(CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_BACKEND, "/dev/ptp5 cannot be opened: No such file or directory");
    fake_reset();
    memset(fake.lacks, true, sizeof(fake.lacks));
    refused(CAPTURE_TIMESTAMP_PTP, CAPTURE_ERR_BACKEND, "/dev/ptp5 cannot be compared with the system's clock");
    CHECK_EQUAL(1, fake.asked[0]);
    CHECK_EQUAL(1, fake.asked[1]);
    CHECK_EQUAL(1, fake.asked[2]);
}

static void the_best_way_to_read_the_card_is_taken_and_kept(void) {
    for (int method = 0; method < 3; method++) {
        fake_reset();
        fake.card_offset_ns = 123456789;
        for (int lacking = 0; lacking < method; lacking++)
            fake.lacks[lacking] = true;
        started(CAPTURE_TIMESTAMP_PTP);
        CHECK_TEXT("/dev/ptp5", fake.opened);
        CHECK_EQUAL(123456789, info().offset_ns);
        CHECK_EQUAL(123456789, atomic_load(&source.applied_ns));
        CHECK_EQUAL(method == 0 ? 0 : 300, info().error_bound_ns); /* half the shortest bracket */
        fake_advance(FAKE_SECOND);
        look();
        for (int other = 0; other < 3; other++)
            CHECK(other == method ? fake.asked[other] > 1 : fake.asked[other] == (other < method));
        over();
    }
}

static void the_cards_clock_is_measured_once_a_second_and_its_drift_counts_as_error(void) {
    fake_reset();
    fake.lacks[0] = true;
    started(CAPTURE_TIMESTAMP_PTP);
    unsigned asked = fake.asked[1];
    for (int i = 0; i < 3; i++) {
        fake_advance(250000000);
        look();
    }
    CHECK_EQUAL(asked, fake.asked[1]);
    fake_advance(250000000);
    fake.card_offset_ns += 20000;
    CHECK_EQUAL(0, look().phc_step_ns);
    CHECK_EQUAL(asked + 1, fake.asked[1]);
    CHECK_EQUAL(20000, info().offset_ns);
    CHECK_EQUAL(20300, info().error_bound_ns);
    CHECK_EQUAL(0, info().steps);
    over();
}

static void a_clock_in_tai_is_taken_to_utc_where_the_kernel_knows_the_difference(void) {
    fake_reset();
    fake.card_offset_ns = TAI_S * FAKE_SECOND + 1000;
    started(CAPTURE_TIMESTAMP_PTP);
    CHECK_EQUAL(1000, info().offset_ns);
    CHECK_TEXT("/dev/ptp5, in TAI, taken to UTC", info().detail);
    fake_advance(FAKE_SECOND);
    fake.timex.tai = TAI_S + 1; /* a leap second: the system's clock goes a second back, the card's on */
    fake.wall_ns -= FAKE_SECOND;
    fake.card_offset_ns += FAKE_SECOND;
    CHECK_EQUAL(-FAKE_SECOND, look().system_step_ns);
    CHECK_EQUAL(1000, info().offset_ns);
    fake_advance(FAKE_SECOND);
    fake.timex.tai = 0; /* a daemon that starts anew */
    look();
    CHECK_EQUAL(1000, info().offset_ns);
    fake.timex.tai = TAI_S;
    over();
    fake.card_offset_ns = -1000;
    started(CAPTURE_TIMESTAMP_PTP);
    CHECK_EQUAL(-1000, info().offset_ns);
    CHECK_TEXT("/dev/ptp5, in UTC", info().detail);
    over();
    fake.timex.tai = 0;
    fake.card_offset_ns = TAI_S * FAKE_SECOND;
    started(CAPTURE_TIMESTAMP_PTP);
    CHECK_EQUAL(TAI_S * FAKE_SECOND, info().offset_ns);
    CHECK_TEXT("/dev/ptp5, as it is: the kernel does not know TAI - UTC", info().detail);
    over();
}

static void a_step_of_the_systems_clock_leaves_ptp_time_where_it_was(void) {
    fake_reset();
    fake.card_offset_ns = 5000;
    started(CAPTURE_TIMESTAMP_PTP);
    fake_advance(250000000);
    fake.wall_ns -= 7200 * FAKE_SECOND;
    fake.card_offset_ns += 7200 * FAKE_SECOND; /* the card's clock was not touched */
    struct clock_news news = look();
    CHECK_EQUAL(-7200 * FAKE_SECOND, news.system_step_ns);
    CHECK_EQUAL(0, news.phc_step_ns);
    CHECK_EQUAL(5000 + 7200 * FAKE_SECOND, atomic_load(&source.applied_ns)); /* at once, not at the next second */
    CHECK_EQUAL(1, info().steps);
    CHECK_EQUAL(0, info().error_bound_ns); /* the step is no drift */
    over();
}

static void a_step_of_the_cards_clock_is_told_as_its_own(void) {
    fake_reset();
    started(CAPTURE_TIMESTAMP_PTP);
    fake_advance(FAKE_SECOND);
    fake.card_offset_ns = -3 * FAKE_SECOND;
    struct clock_news news = look();
    CHECK_EQUAL(0, news.system_step_ns);
    CHECK_EQUAL(-3 * FAKE_SECOND, news.phc_step_ns);
    CHECK_EQUAL(-3 * FAKE_SECOND, atomic_load(&source.applied_ns));
    CHECK_EQUAL(1, info().steps);
    over();
}

static void a_card_that_goes_leaves_the_last_offset_and_no_bound(void) {
    fake_reset();
    fake.card_offset_ns = 777;
    started(CAPTURE_TIMESTAMP_PTP);
    fake_advance(FAKE_SECOND);
    fake.card_error = ENODEV;
    struct clock_news news = look();
    CHECK(news.sync_changed && !news.in_sync);
    CHECK_EQUAL(777, info().offset_ns);
    CHECK_EQUAL(777, atomic_load(&source.applied_ns));
    CHECK(info().error_bound_ns == UINT64_MAX);
    CHECK(!look().sync_changed);
    fake.card_error = 0;
    news = look();
    CHECK(news.sync_changed && news.in_sync);
    CHECK_EQUAL(0, info().error_bound_ns);
    over();
}

static void hardware_time_is_compared_but_never_shifted(void) {
    fake_reset();
    fake.card_offset_ns = TAI_S * FAKE_SECOND;
    started(CAPTURE_TIMESTAMP_HARDWARE);
    CHECK_EQUAL(TAI_S * FAKE_SECOND, info().offset_ns);
    CHECK_EQUAL(0, atomic_load(&source.applied_ns));
    CHECK_TEXT("/dev/ptp5, in TAI", info().detail);
    over();
    fake.phc_index = -1;
    started(CAPTURE_TIMESTAMP_HARDWARE);
    CHECK(info().error_bound_ns == UINT64_MAX);
    CHECK_TEXT("the card's clock, which is no PTP hardware clock", info().detail);
    over();
}

static void interfaces_of_one_capture_share_a_clock(void) {
    fake_reset();
    const char *const two[] = {"eth0", "eth1"};
    struct capture_config config = {
        .struct_size = sizeof(config), .interfaces = two, .interface_count = 2, .timestamp_source = CAPTURE_TIMESTAMP_PTP};
    clock_source_init(&source, &fake_system, &config, true);
    CHECK_EQUAL(CAPTURE_OK, clock_source_start(&source, &config, "afpacket", NULL));
    CHECK_EQUAL(CAPTURE_OK, clock_source_admit(&source, "eth2", NULL));
    struct capture_error_info error = {0};
    fake.phc_index = 6;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, clock_source_admit(&source, "eth3", &error));
    CHECK(strstr(error.message, "interface eth3 has another PTP hardware clock than the first") != NULL);
    fake.phc_index = -1;
    CHECK_EQUAL(CAPTURE_ERR_INVALID, clock_source_admit(&source, "eth3", &error));
    over();
}

static void a_source_that_was_stopped_can_start_again_and_looks_at_nothing_meanwhile(void) {
    fake_reset();
    started(CAPTURE_TIMESTAMP_PTP);
    clock_source_stop(&source);
    CHECK_EQUAL(0, fake.files_open);
    fake.wall_ns += 3600 * FAKE_SECOND;
    CHECK_EQUAL(0, look().system_step_ns);
    CHECK(!clock_source_is_stale(&source));
    struct capture_config config = config_of(CAPTURE_TIMESTAMP_PTP);
    CHECK_EQUAL(CAPTURE_OK, clock_source_start(&source, &config, "afpacket", NULL));
    CHECK_EQUAL(0, look().system_step_ns); /* what happened before is no step of this capture */
    CHECK_EQUAL(0, info().steps);
    fake_advance(FAKE_SECOND + 1);
    CHECK(clock_source_is_stale(&source));
    over();
}

int main(void) {
    RUN(a_step_is_told_with_its_sign_and_a_slew_is_none);
    RUN(a_step_made_in_small_ones_within_a_second_is_one_and_over_many_seconds_none);
    RUN(what_the_measurement_itself_may_err_is_no_step);
    RUN(the_kernels_clock_is_the_systems);
    RUN(files_have_no_clock);
    RUN(ntp_tells_offset_bound_and_synchronisation);
    RUN(ntp_is_refused_without_synchronisation);
    RUN(ptp_is_refused_without_a_clock_that_can_be_compared);
    RUN(the_best_way_to_read_the_card_is_taken_and_kept);
    RUN(the_cards_clock_is_measured_once_a_second_and_its_drift_counts_as_error);
    RUN(a_clock_in_tai_is_taken_to_utc_where_the_kernel_knows_the_difference);
    RUN(a_step_of_the_systems_clock_leaves_ptp_time_where_it_was);
    RUN(a_step_of_the_cards_clock_is_told_as_its_own);
    RUN(a_card_that_goes_leaves_the_last_offset_and_no_bound);
    RUN(hardware_time_is_compared_but_never_shifted);
    RUN(interfaces_of_one_capture_share_a_clock);
    RUN(a_source_that_was_stopped_can_start_again_and_looks_at_nothing_meanwhile);
    return 0;
}
