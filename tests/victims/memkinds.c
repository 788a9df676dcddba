/* memkinds CASE ROUNDS PERIOD_US: one kind of memory, set up once, changed and checked from inside in each round.
 *
 * Each page holds words that say whose they are; a model says which round wrote a page last. A line is the round and a
 * digest of all that was seen; whatever is not as the program left it ends it with its name. */
#include "memkinds.h"
#include "memkinds_exec.h"
#include "memkinds_flags.h"
#include "memkinds_huge.h"
#include "memkinds_keys.h"
#include "memkinds_many.h"
#include "memkinds_memfd.h"
#include "memkinds_names.h"
#include "memkinds_paged.h"
#include "memkinds_policy.h"
#include "memkinds_posix.h"
#include "memkinds_sysv.h"

static const struct memory_case table[] = {
    {"memfd", memfd_set_up, memfd_round},
    {"memfd_sealed", sealed_set_up, sealed_round},
    {"memfd_shared", between_set_up, between_round},
    {"guard", guard_set_up, guard_round},
    {"flags", flags_set_up, flags_round},
    {"everything_locked", locked_set_up, locked_round},
    {"locked_to_come", to_come_set_up, to_come_round},
    {"many", many_set_up, many_round},
    {"crowd", crowd_set_up, crowd_round},
    {"sparse", sparse_set_up, sparse_round},
    {"swapped", swapped_set_up, swapped_round},
    {"merged", merged_set_up, merged_round},
    {"names", names_set_up, names_round},
    {"posix", posix_set_up, posix_round},
    {"sysv", sysv_set_up, sysv_round},
    {"policies", policies_set_up, policies_round},
    {"execute_only", exec_set_up, exec_round},
    {"keys", keys_set_up, keys_round},
    {"huge", huge_set_up, huge_round},
    {"gib", gib_set_up, gib_round},
};

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    long rounds = number(argc, argv, 2, 300), period = number(argc, argv, 3, 2000);
    const struct memory_case *one = table, *end = table + sizeof table / sizeof *table;
    while (one < end && strcmp(one->name, argv[1]))
        one++;
    if (one == end)
        fail("no case is called %s", argv[1]);
    last_round = rounds;
    one->set_up();
    for (long round = 1; round <= rounds; round++) {
        hold_at(round, rounds);
        say(1, "%ld %016lx\n", round, one->round(round));
        sleep_us(period);
    }
    return 0;
}
