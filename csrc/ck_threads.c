/* The pool: one call's jobs, shared out over threads that sleep between calls.
 *
 * One call owns the pool at a time. Another that comes meanwhile, from a job or from another thread
 * of the program, does its jobs itself: nobody waits for the pool, so nothing can deadlock. Each
 * thread's share is settled beforehand. A share that its thread has not begun when the caller is
 * done with its own, because it is still waking up or others have its CPU, the caller does too.
 *
 * Threads start when they are first asked for and stay. Who waits looks for some tens of
 * microseconds, which covers the gap from one layer of a network to the next, and then sleeps. A
 * forked child has none of its parent's threads, and starts its own. */
#ifdef __linux__
#define _GNU_SOURCE /* affinity */
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "ck_impl.h"

/* Looks at a flag before sleeping. A pause takes 40 to 140 cycles: 15 to 50 us at 3 GHz. */
enum { LOOKS = 1000 };

/* What one thread does of a call. */
struct share {
  ck_job *job;
  void *context;
  int64_t begin, end;
  int thread;
};

enum state { IDLE, TOLD, BUSY };

struct worker {
  _Alignas(CK_ALIGN) atomic_int state; /* who sleeps waits for it to change */
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  pthread_t thread;
  struct share share; /* the owner's while IDLE, the worker's while BUSY */
  atomic_int cpu;     /* where it was last, or -1 */
};

static atomic_bool owned;
static int started; /* the owner's, as the workers are */
static struct worker workers[CK_MAX_THREADS - 1];

CK_INLINE void pause_a_little(void) {
#if CK_X86
  _mm_pause();
#elif CK_ARM64
  __asm__ volatile("isb"); /* yield is a nop on most cores */
#endif
}

static int this_cpu(void) {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

static bool is(struct worker *w, enum state state) {
  return atomic_load_explicit(&w->state, memory_order_acquire) == (int)state;
}

static bool becomes(struct worker *w, enum state state) {
  for (int i = 0; i < LOOKS; ++i) {
    if (is(w, state)) return true;
    pause_a_little();
  }
  return false;
}

static void await_share(struct worker *w) {
  if (becomes(w, TOLD)) return;
  pthread_mutex_lock(&w->mutex);
  while (!is(w, TOLD)) {
    pthread_cond_wait(&w->changed, &w->mutex);
    atomic_store_explicit(&w->cpu, this_cpu(), memory_order_relaxed);
  }
  pthread_mutex_unlock(&w->mutex);
}

/* Wait for the end of a share, which is near: for up to a millisecond without sleeping, since Linux
 * may wake a caller, too, where the worker ran. A worker that waits for this CPU gets it. */
static void await_end(struct worker *w) {
  for (int i = 0; i < 30; ++i) {
    if (becomes(w, IDLE)) return;
    sched_yield();
  }
  pthread_mutex_lock(&w->mutex);
  while (!is(w, IDLE)) pthread_cond_wait(&w->changed, &w->mutex);
  pthread_mutex_unlock(&w->mutex);
}

static void become(struct worker *w, enum state state) {
  pthread_mutex_lock(&w->mutex);
  atomic_store_explicit(&w->state, state, memory_order_release);
  pthread_cond_signal(&w->changed); /* a system call only where someone sleeps */
  pthread_mutex_unlock(&w->mutex);
}

/* Begin a share, or take it back; one of the two succeeds. */
static bool leave_told(struct worker *w, enum state state) {
  int told = TOLD;
  return atomic_compare_exchange_strong(&w->state, &told, state);
}

static void do_share(const struct share *s) {
  for (int64_t j = s->begin; j < s->end; ++j) s->job(s->context, j, s->thread);
}

/* Linux may wake a thread where its waker runs though another CPU is idle, above all in virtual
 * machines, whose idle CPUs it takes for preempted ones; then both share a CPU, call after call. So
 * a worker that was on the caller's is sent to the others. */
static void keep_apart(struct worker *w) {
#ifdef __linux__
  const int here = this_cpu();
  cpu_set_t others;
  if (atomic_load_explicit(&w->cpu, memory_order_relaxed) != here) return;
  if (sched_getaffinity(0, sizeof others, &others)) return;
  CPU_CLR(here, &others);
  if (CPU_COUNT(&others)) pthread_setaffinity_np(w->thread, sizeof others, &others);
#else
  (void)w;
#endif
}

static void *serve(void *argument) {
  struct worker *w = argument;
  for (;;) {
    await_share(w);
    if (!leave_told(w, BUSY)) continue;
    const uint64_t saved = ck_fp_enter();
    do_share(&w->share);
    ck_fp_leave(saved);
    atomic_store_explicit(&w->cpu, this_cpu(), memory_order_relaxed);
    become(w, IDLE);
  }
  return NULL;
}

/* Its signals are for the program's own threads. */
static bool start(struct worker *w) {
  sigset_t all, before;
  atomic_init(&w->state, IDLE);
  atomic_init(&w->cpu, -1);
  pthread_mutex_init(&w->mutex, NULL);
  pthread_cond_init(&w->changed, NULL);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const bool made = pthread_create(&w->thread, NULL, serve, w) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (made) pthread_detach(w->thread);
  return made;
}

static void forget(void) {
  started = 0;
  atomic_store(&owned, false);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget); }

/* So many workers, or as many as there can be. */
static int have_workers(int wanted) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  while (started < wanted && start(&workers[started])) ++started;
  return (int)ck_min(wanted, started);
}

struct ck_span ck_deal_out(int64_t n, int64_t parts, int64_t part) {
  const int64_t each = n / parts, more = n % parts;
  const int64_t begin = part * each + ck_min(part, more);
  return (struct ck_span){begin, begin + each + (part < more)};
}

void ck_parallel(int threads, int64_t jobs, ck_job *job, void *context) {
  threads = (int)ck_min(ck_min(threads, CK_MAX_THREADS), jobs);
  if (threads < 2 || atomic_exchange(&owned, true)) {
    do_share(&(struct share){job, context, 0, jobs, 0});
    return;
  }
  threads = 1 + have_workers(threads - 1);
  for (int t = 1; t < threads; ++t) {
    const struct ck_span mine = ck_deal_out(jobs, threads, t);
    workers[t - 1].share = (struct share){job, context, mine.begin, mine.end, t};
    keep_apart(&workers[t - 1]);
    become(&workers[t - 1], TOLD);
  }
  do_share(&(struct share){job, context, 0, ck_deal_out(jobs, threads, 0).end, 0});
  for (int t = threads - 1; t > 0; --t)
    if (leave_told(&workers[t - 1], IDLE)) do_share(&workers[t - 1].share);
  for (int t = 1; t < threads; ++t) await_end(&workers[t - 1]);
  atomic_store(&owned, false);
}
