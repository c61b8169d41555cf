package android.os

class Bundle {
    fun putString(key: String?, value: String?): Unit = throw NotImplementedError()
    fun putDouble(key: String?, value: Double): Unit = throw NotImplementedError()
}
