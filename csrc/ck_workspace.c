/* Memory for workspaces that outlives a call. malloc may give what a call frees back to the kernel,
 * and then every call pays for page faults: several times what the call itself takes.
 *
 * A few slots hold one free workspace each. Who needs one takes what is in a slot, and puts it back
 * or frees it; nobody waits. Calls one after the other share one workspace, whose lines are still
 * in the cache. */
#include <stdatomic.h>
#include <stdlib.h>

#include "ck_impl.h"

enum { SLOTS = 8, KEEP = 16 << 20 /* bytes; a larger one is freed at once */ };

struct kept {
  _Alignas(CK_ALIGN) size_t bytes;
};

static _Atomic(struct kept *) slots[SLOTS];

void *ck_workspace_take(size_t bytes) {
  for (int i = 0; i < SLOTS; ++i) {
    struct kept *kept = atomic_exchange(&slots[i], NULL);
    if (kept && kept->bytes >= bytes) return kept + 1;
    free(kept); /* too small: the new one takes its place */
    if (kept) break;
  }
  if (bytes > (size_t)PTRDIFF_MAX - sizeof(struct kept) - CK_ALIGN) return NULL;
  bytes = (bytes + CK_ALIGN - 1) / CK_ALIGN * CK_ALIGN;
  struct kept *kept = ck_alloc_pages(sizeof *kept + bytes);
  if (!kept) return NULL;
  kept->bytes = bytes;
  return kept + 1;
}

void ck_workspace_give(void *workspace) {
  if (!workspace) return;
  struct kept *kept = (struct kept *)workspace - 1, *none;
  for (int i = 0; i < SLOTS && kept->bytes <= KEEP; ++i) {
    none = NULL;
    if (atomic_compare_exchange_strong(&slots[i], &none, kept)) return;
  }
  free(kept);
}
