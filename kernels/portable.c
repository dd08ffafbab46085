/* The kernels for What the compiler makes of plain C: NEON on Arm, SSE2 on older x86-64. */
#define MPISIGN_UNIT portable
#include "kernels.inc"
