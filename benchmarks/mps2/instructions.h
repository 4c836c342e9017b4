/* The instructions that QEMU executes, with -DTIMED. */
#ifdef TIMED
#include <stdint.h>

/* Timer 0 of the boards mps2-an*, which counts down at 25 MHz: under `qemu -icount shift=10` an instruction takes
   1024 ns, 25.6 counts. */
static volatile uint32_t *const timer = (uint32_t *)0x40000000; /* control, value, reload */

static void count_instructions(void)
{
    timer[2] = timer[1] = UINT32_MAX;
    timer[0] = 1;
}

static unsigned long instructions(void)
{
    return (unsigned long)((UINT32_MAX - timer[1]) / 25.6);
}
#endif
