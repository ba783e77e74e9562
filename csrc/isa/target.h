/* CK_TARGET_BEGIN("avx2,fma") ... CK_TARGET_END: everything between is compiled for those features,
 * with gcc and with clang, without a flag of its own for the file. System headers come before. */
#ifndef CK_TARGET_H
#define CK_TARGET_H

#define CK_NO_INLINE __attribute__((noinline))

#define CK_PRAGMA(x) _Pragma(#x)

#if defined(__clang__)
#define CK_TARGET_BEGIN(features) \
  CK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CK_TARGET_END CK_PRAGMA(clang attribute pop)
#define CK_UNROLL CK_PRAGMA(clang loop unroll(full))
#define CK_NO_UNROLL CK_PRAGMA(clang loop unroll(disable))
#else
#define CK_TARGET_BEGIN(features) CK_PRAGMA(GCC push_options) CK_PRAGMA(GCC target(features))
#define CK_TARGET_END CK_PRAGMA(GCC pop_options)
#define CK_UNROLL CK_PRAGMA(GCC unroll 64)
#define CK_NO_UNROLL CK_PRAGMA(GCC unroll 1)
#endif

/* CK_REGISTERS_FIRST_BEGIN ... END: gcc for ARM, unlike gcc for x86, orders instructions before it
 * allocates registers; it moves a whole tile's loads to the front and then spills the sums. */
#if defined(__clang__)
#define CK_REGISTERS_FIRST_BEGIN
#define CK_REGISTERS_FIRST_END
#else
#define CK_REGISTERS_FIRST_BEGIN \
  CK_PRAGMA(GCC push_options) CK_PRAGMA(GCC optimize("no-schedule-insns"))
#define CK_REGISTERS_FIRST_END CK_PRAGMA(GCC pop_options)
#endif

#endif
