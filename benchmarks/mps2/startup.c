/* Start of a program on the boards mps2-an386 (Cortex-M4F) and mps2-an500 (Cortex-M7) under QEMU, which loads all of it
   into memory. Files and the screen are the host's, by semihosting (newlib's librdimon). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern uint32_t stack_top;
int main(void);
void initialise_monitor_handles(void);

static void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: switch on the floating-point unit */
    __asm__ volatile("dsb\n\tisb");
    initialise_monitor_handles();
    const int code = main();
    fflush(stdout);
    _Exit(code);
}

static void fault(void)
{
    _Exit(3);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void)) & stack_top, reset, fault, fault, fault, fault, fault,
};
