package org.junit

@Target(AnnotationTarget.FUNCTION)
annotation class Test

object Assert {
    @JvmStatic fun assertEquals(expected: Any?, actual: Any?): Unit = throw NotImplementedError()
    @JvmStatic fun assertTrue(condition: Boolean): Unit = throw NotImplementedError()
}
