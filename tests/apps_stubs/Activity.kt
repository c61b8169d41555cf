package androidx.activity

import android.content.Context
import android.os.Bundle

open class ComponentActivity : Context() {
    protected open fun onCreate(savedInstanceState: Bundle?) = Unit
    protected open fun onDestroy() = Unit
    fun runOnUiThread(action: Runnable): Unit = throw NotImplementedError()
}
