package org.junit

@Target(AnnotationTarget.FUNCTION)
annotation class Test

object Assert {
    @JvmStatic fun assertEquals(expected: Any?, actual: Any?) {
        if (expected != actual) throw AssertionError("expected $expected, found $actual")
    }

    @JvmStatic fun assertTrue(condition: Boolean) {
        if (!condition) throw AssertionError("expected true")
    }
}
