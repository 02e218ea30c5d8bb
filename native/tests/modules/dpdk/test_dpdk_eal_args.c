/* SPDX-License-Identifier: Apache-2.0 */
/* Checking and completing the EAL's arguments. */
#include "check.h"
#include "dpdk/eal_args.h"

#define ARGUMENTS(...) (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)

static struct capture_config with(const char *const *arguments, size_t count) {
    return (struct capture_config){
        .struct_size = sizeof(struct capture_config), .dpdk_eal_args = arguments, .dpdk_eal_arg_count = (uint32_t)count};
}

static void check_refused(const char *const *arguments, size_t count, const char *part) {
    struct capture_config config = with(arguments, count);
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, eal_args_check(&config, &error));
    CHECK_TEXT("dpdk_eal_args", error.field);
    if (!strstr(error.message, part))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, part) != NULL);
}

static const char *completed(const char *const *arguments, size_t count, uint64_t huge_pages) {
    static char text[1024];
    static struct eal_args args;
    struct capture_config config = with(arguments, count);
    CHECK_EQUAL(CAPTURE_OK, eal_args_check(&config, NULL));
    eal_args_complete(&config, huge_pages, 3, &args);
    text[0] = '\0';
    for (int i = 0; i < args.argc; i++)
        sprintf(text + strlen(text), "%s%s", i ? " " : "", args.argv[i]);
    CHECK(args.argv[args.argc] == NULL);
    return text;
}

static void options_that_end_the_process_or_are_unknown_are_refused(void) {
    check_refused(ARGUMENTS("--help"), "dpdk_eal_args[0] is \"--help\"");
    check_refused(ARGUMENTS("--no-huge", "-h"), "dpdk_eal_args[1] is \"-h\"");
    check_refused(ARGUMENTS("--no-hug"), "\"--no-hug\": not an EAL option");
    check_refused(ARGUMENTS("--"), "\"--\": not an EAL option");
    check_refused(ARGUMENTS("-"), "\"-\": not an EAL option");
    check_refused(ARGUMENTS("512"), "\"512\": not an EAL option");
    check_refused(ARGUMENTS("-m", "512", "extra"), "dpdk_eal_args[2] is \"extra\"");
    check_refused(ARGUMENTS("--m=5"), "\"--m=5\": not an EAL option");
    check_refused(ARGUMENTS("-vh"), "\"-vh\": this EAL option takes no value");
}

static void an_option_has_its_value_or_none(void) {
    check_refused(ARGUMENTS("-m"), "\"-m\": this EAL option needs a value");
    check_refused(ARGUMENTS("--no-huge", "--vdev"), "\"--vdev\": this EAL option needs a value");
    check_refused(ARGUMENTS("--no-huge=1"), "takes no value");
    struct capture_config config =
        with(ARGUMENTS("-m512", "--vdev=net_null0", "--vdev", "net_ring0", "-l", "0", "--huge-unlink"));
    CHECK_EQUAL(CAPTURE_OK, eal_args_check(&config, NULL));
}

static void without_arguments_a_host_without_huge_pages_runs_without_them(void) {
    struct capture_config none = {.struct_size = sizeof none};
    CHECK_EQUAL(CAPTURE_OK, eal_args_check(&none, NULL));
    CHECK_TEXT("jarvis-capture -l 3 --no-telemetry --no-huge -m 384 --no-shconf", completed(NULL, 0, 0));
    CHECK_TEXT("jarvis-capture -l 3 --no-telemetry --in-memory", completed(NULL, 0, 8));
}

static void what_the_configuration_says_stands(void) {
    CHECK_TEXT("jarvis-capture --no-huge -m 600 -l 3 --no-telemetry --no-shconf",
               completed(ARGUMENTS("--no-huge", "-m", "600"), 8));
    CHECK_TEXT("jarvis-capture --lcores=1 --telemetry --socket-mem 64 --file-prefix x",
               completed(ARGUMENTS("--lcores=1", "--telemetry", "--socket-mem", "64", "--file-prefix", "x"), 0));
    CHECK_TEXT("jarvis-capture --vdev net_null0 -c 1 --no-telemetry --no-huge -m 384 --no-shconf",
               completed(ARGUMENTS("--vdev", "net_null0", "-c", "1"), 0));
}

static void too_much_is_refused(void) {
    static const char *many[EAL_ARGS_MAX + 1];
    static char long_one[300];
    for (int i = 0; i <= EAL_ARGS_MAX; i++)
        many[i] = "--no-huge";
    struct capture_config config = with(many, EAL_ARGS_MAX + 1);
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, eal_args_check(&config, &error));
    CHECK_TEXT("dpdk_eal_arg_count is 65: accepted are 0 to 64", error.message);
    config.dpdk_eal_arg_count = EAL_ARGS_MAX;
    CHECK_EQUAL(CAPTURE_OK, eal_args_check(&config, NULL));
    memset(long_one, 'x', sizeof long_one - 1);
    check_refused(ARGUMENTS("-a", long_one), "at most 255 bytes");
}

int main(void) {
    RUN(options_that_end_the_process_or_are_unknown_are_refused);
    RUN(an_option_has_its_value_or_none);
    RUN(without_arguments_a_host_without_huge_pages_runs_without_them);
    RUN(what_the_configuration_says_stands);
    RUN(too_much_is_refused);
    return 0;
}
